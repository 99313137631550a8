"""From what a person asks `specx bench` for to arms that are ready to answer."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from specx.backends.errors import UsageError
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import GGUFInfo
from specx.backends.llama import libllama
from specx.backends.llama.server import LlamaServer, speculation_arguments
from specx.backends.machine.energy import EnergyMeter
from specx.backends.machine.machine import machine_fingerprint, read_conditions, read_memory, this_cpu
from specx.drafters import registry
from specx.engine.bench.records import ArmInfo, Run
from specx.engine.bench.run import Arm, PeerArm, SpecxArm, nothing_learned, server_sampling
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.setup.here import Told
from specx.engine.setup.layers import step_bytes

__all__ = [
    "BenchSettings",
    "Opened",
    "load_average",
    "name_arms",
    "open_bench",
    "open_peers",
    "opened_with",
]

PLAIN = "none"
PEER = "llama-server"

Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """What to compare.

    Attributes:
        asked: what was said of the model; its drafter, kernels and threads are replaced by the following.
        drafters, kernels, threads: every combination is an arm, and plain decoding is always one.
        sampling: how tokens are chosen, with a seed.
        n_predict: most tokens of an answer.
        rounds: how often everything is answered.
        turns: most answers to one conversation.
        warm: learn from one answer for the next.
        corpus: search the texts that were added for the model.
        ignore_eos: go on after the model's end of text.
        peer: a llama-server binary to compare with.
        peer_arguments: more of its options.
        peer_specs: its kinds of speculation, "" is none; see `speculation_arguments`.
        baseline: name of the arm to compare with; empty is plain decoding.
    """

    asked: Asked
    drafters: Sequence[str] = ("auto",)
    kernels: Sequence[str] = ("auto",)
    threads: Sequence[int | None] = (None,)
    sampling: SamplingSettings = field(default_factory=lambda: SamplingSettings(seed=1, temperature=0.0))
    n_predict: int = 128
    rounds: int = 3
    turns: int = 2
    warm: bool = False
    corpus: bool = False
    ignore_eos: bool = False
    peer: Path | None = None
    peer_arguments: Sequence[str] = ()
    peer_specs: Sequence[str] = ("", "ngram-mod")
    baseline: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """Arms that are ready, and a run without answers.

    Attributes:
        arms: plain decoding first.
        sessions: arm -> its session, of those that are specx.
        run: who and what is measured.
    """

    arms: list[Arm]
    sessions: dict[str, Session]
    run: Run


@dataclass(frozen=True, slots=True)
class ArmName:
    """An arm before anything is loaded."""

    name: str
    plain: str
    drafter: str
    kernels: str
    threads: int | None


def name_arms(
    drafters: Sequence[str], kernels: Sequence[str], threads: Sequence[int | None]
) -> list[ArmName]:
    """Every combination, each group of the same kernels and threads led by its plain arm.

    Names say what tells arms apart: "auto", "auto@stock", "auto/2t", "auto@stock/2t". A drafter named twice
    makes two arms, the second with "#2": what differs between them is noise.
    """
    arms = []
    for kind in dict.fromkeys(kernels):
        for count in dict.fromkeys(threads):
            suffix = f"@{kind}" if len({*kernels}) > 1 else ""
            suffix += f"/{count or 'auto'}t" if len({*threads}) > 1 else ""
            seen: list[str] = []
            for drafter in (PLAIN, *_without_first(drafters, PLAIN)):
                seen.append(drafter)
                again = seen.count(drafter)
                name = f"{drafter}{suffix}" + (f"#{again}" if again > 1 else "")
                arms.append(ArmName(name, f"{PLAIN}{suffix}", drafter, kind, count))
    return arms


@contextmanager
def open_bench(settings: BenchSettings, *, progress: Told | None = None, notice: Notice) -> Iterator[Opened]:
    """Load the model for every arm of specx; everything is closed again at the end.

    Raises:
        ModelError: it cannot be loaded.
        UsageError: the baseline is no arm.
    """
    names = name_arms(settings.drafters, settings.kernels, settings.threads)
    peers = [_peer_name(spec) for spec in settings.peer_specs] if settings.peer else []
    _check_baseline(settings.baseline, [*(arm.name for arm in names), *peers])
    info = read_runnable(settings.asked.model)
    energy = EnergyMeter()
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        arms: list[Arm] = []
        for arm in names:
            loaded = 0.0
            if arm.name == arm.plain:
                start = time.perf_counter()
                session = _open_session(settings, arm, stack, progress, notice)
                loaded = time.perf_counter() - start
            sessions[arm.name] = session
            described = _arm_info(arm, session, info, loaded)
            arms.append(SpecxArm(described, session, settings.sampling, warm=settings.warm, energy=energy))
        yield Opened(arms, sessions, _new_run(settings, info, arms, sessions[names[0].name]))


@contextmanager
def open_peers(settings: BenchSettings, opened: Opened) -> Iterator[None]:
    """Start a server for each kind of speculation, and add them to the arms.

    Raises:
        PeerError: the program cannot be started.
    """
    first = opened.arms[0].info.name
    session = opened.sessions[first]
    assert session.setup is not None
    energy = EnergyMeter()
    with ExitStack() as stack:
        for spec in settings.peer_specs if settings.peer else ():
            server = _server(settings, session, spec)
            stack.enter_context(server)
            info = ArmInfo(
                name=_peer_name(spec),
                plain=_peer_name("") if spec and "" in settings.peer_specs else first,
                peer=True,
                threads=session.setup.load.threads,
                command=server.command,
            )
            opened.arms.append(PeerArm(info, server, server_sampling(settings.sampling), energy=energy))
        opened.run.arms = [arm.info for arm in opened.arms]
        yield


def _without_first(names: Sequence[str], left_out: str) -> list[str]:
    """`names` without the first `left_out`."""
    kept = list(names)
    if left_out in kept:
        kept.remove(left_out)
    return kept


def opened_with(drafters: Sequence[str]) -> str:
    """The one of `drafters` that a session is opened with so that it can take turns with all of them."""
    asking = [name for name in drafters if registry.find(name).guessers]
    if asking:  # one that needs a draft model to be named before others, as they take one that was named
        return max(asking, key=lambda name: registry.find(name).named)
    return next((name for name in drafters if name != PLAIN), PLAIN)


def _check_baseline(baseline: str, names: Sequence[str]) -> None:
    if baseline and baseline not in names:
        raise UsageError(f"--baseline is {baseline!r}", f"the arms are {', '.join(names)}")


def _open_session(
    settings: BenchSettings,
    arm: ArmName,
    stack: ExitStack,
    progress: Told | None,
    notice: Notice,
) -> Session:
    wanted = opened_with(settings.drafters)
    asked = replace(settings.asked, drafter=wanted, kernels=arm.kernels, threads=arm.threads)
    session = stack.enter_context(Session.open(asked, progress=progress, notice=notice))
    # What a benchmark writes is not what this user reads; what it measures of the machine is kept.
    stack.callback(setattr, session, "learned", session.learned)
    session.learned = nothing_learned(session.learned.corpora if settings.corpus else None)
    return session


def _arm_info(arm: ArmName, session: Session, info: GGUFInfo, loaded: float) -> ArmInfo:
    assert session.setup is not None
    return ArmInfo(
        name=arm.name,
        plain=arm.plain,
        drafter=arm.drafter,
        kernels=session.setup.kernels.value or "",
        threads=session.setup.threads.value,
        load_s=round(loaded, 3),
        setup=session.setup.to_json(),
        weight_bytes=step_bytes(info),
    )


def _peer_name(spec: str) -> str:
    return f"{PEER}:{spec}" if spec else PEER


def _server(settings: BenchSettings, session: Session, spec: str) -> LlamaServer:
    """A server with the model, the context and the threads of `session`.

    Raises:
        PeerError: there is no such program.
    """
    assert settings.peer is not None
    arguments = [
        *_server_arguments(session),
        *settings.peer_arguments,
        *speculation_arguments(spec),
    ]
    return LlamaServer(
        settings.peer, arguments, session.vocab.eog, forgetful=bool(spec) and not settings.warm
    )


def _server_arguments(session: Session) -> list[str]:
    """The options of a server that runs as `session` does."""
    assert session.setup is not None
    load = session.setup.load
    arguments = ["-m", str(load.path), "-c", str(session.n_ctx)]
    arguments += ["-t", str(load.threads), "-tb", str(load.threads_batch)]
    arguments += ["-fa", load.flash_attn, "-ctk", load.type_k, "-ctv", load.type_v]
    arguments += ["-b", str(load.n_batch), "-ub", str(load.n_ubatch)]
    return [*arguments, "--parallel", "1", "--cache-ram", "0", "--no-webui"]


def _new_run(settings: BenchSettings, info: GGUFInfo, arms: Sequence[Arm], session: Session) -> Run:
    assert session.setup is not None
    load = session.setup.load
    return Run(
        started=datetime.now().astimezone().isoformat(timespec="seconds"),
        model={
            "name": info.name or info.path.stem,
            "file": info.path.name,
            "bytes": info.size,
            "type": info.main_type,
            "parameters": info.parameters,
            "fingerprint": info.fingerprint,
        },
        machine=_machine(),
        build={
            "specx": version("specx"),
            "llama_cpp_python": version("llama-cpp-python"),
            "llama_cpp": libllama.build_fingerprint(),
            "python": platform.python_version(),
        },
        settings={
            "context": session.n_ctx,
            "type_k": load.type_k,
            "type_v": load.type_v,
            "flash_attn": load.flash_attn,
            "gpu_layers": load.n_gpu_layers,
            "draft_max": settings.asked.draft_max,
            "exact": settings.asked.exact,
            "n_predict": settings.n_predict,
            "rounds": settings.rounds,
            "turns": settings.turns,
            "caches": "warm" if settings.warm else "cold",
            "corpus": settings.corpus,
            "ignore_eos": settings.ignore_eos,
            "sampling": {
                **asdict(settings.sampling),
                "logit_bias": {str(token): str(bias) for token, bias in settings.sampling.logit_bias.items()},
            },
        },
        baseline=settings.baseline or arms[0].info.name,
        arms=[arm.info for arm in arms],
        load_average=load_average(),
    )


def load_average() -> list[float]:
    """Processes that want to run, on average over the last minute; empty if it cannot be read."""
    load = read_conditions().load
    return [load[0]] if load else []


def _machine() -> dict[str, Any]:
    cpu, memory = this_cpu(), read_memory()
    conditions = read_conditions().to_json()
    return {
        "fingerprint": machine_fingerprint(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu.name,
        "cores": cpu.usable_cores,
        "memory": memory.total,
        "power": conditions["power"],
        "governors": conditions["governors"],
        "temperature_c": conditions["temperature_c"],
    }
