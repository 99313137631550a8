"""Compare specx with llama.cpp's own server, answer by answer, on the same prompts.

Every arm answers every prompt greedily, one arm after the other in an order drawn anew for each prompt, so
whatever slows the machine down for a while slows all of them. Nothing is learned from one prompt to the next
(specx forgets; the servers' prompt cache is off). A second turn continues the first arm's answer to the
first turn, for all arms. Measurements are appended to a file as they come; --resume goes on with it.

    python benchmarks/compare.py --model M.gguf --server build/bin/llama-server --prompts prompts/*.jsonl \\
        --arms specx:auto specx:none server server:ngram-mod --per-category 8 --output results.jsonl
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from arms import Arm, ServerArm, SpecxArm
from prompts import Prompt, read_prompts, sample
from results import Measurement, Results, report

from specx.backends.errors import SpecxError
from specx.engine.session import Session
from specx.engine.settings import LoadSettings
from specx.engine.template import ChatTemplate

ARMS = ("specx:auto", "specx:none", "server", "server:ngram-mod", "server:ngram-simple")


def main() -> int:
    """Run or resume the comparison, then print the tables."""
    arguments = parse(sys.argv[1:])
    try:
        prompts = sample(
            read_prompts(arguments.prompts, max_turns=arguments.turns), arguments.per_category, arguments.seed
        )
        results = Results(arguments.output, header(arguments), resume=arguments.resume)
        try:
            measure(arguments, prompts, results)
        except KeyboardInterrupt:
            print("interrupted; --resume goes on with it", file=sys.stderr)
    except (SpecxError, ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report([*results.measurements.values()], arguments.arms, arguments.baseline))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="GGUF file")
    add("--prompts", type=Path, nargs="+", required=True, help="JSONL files of prompts")
    add("--output", type=Path, required=True, help="file that measurements are appended to")
    add("--server", type=Path, help="the llama-server binary")
    add(
        "--arms",
        nargs="+",
        default=[*ARMS],
        help="specx:DRAFTER[@KERNELS], server, server:TYPE[:option=value,...]",
    )
    add("--baseline", help="arm that the others are compared with (server, or else specx:none)")
    add("--per-category", type=int, help="prompts per category (all)")
    add("--turns", type=int, default=2, help="turns per conversation, at most (2)")
    add("--repeats", type=int, default=1, help="answers per prompt and arm; the order reverses each time (1)")
    add("--n-predict", type=int, default=192, help="tokens per answer, at most (192)")
    add("--ctx-size", type=int, default=4096, help="context in tokens (4096)")
    add("--threads", type=int, default=2, help="threads of every arm (2)")
    add("--seed", type=int, default=0, help="of the choice of prompts and the order of arms (0)")
    add("--resume", action="store_true", help="go on with the output file")
    arguments = parser.parse_args(argv)
    if bad := [arm for arm in arguments.arms if arm.partition(":")[0] not in ("specx", "server")]:
        parser.error(f"unknown arm {bad[0]}")
    if arguments.server is None and any(arm.startswith("server") for arm in arguments.arms):
        parser.error("the server's arms need --server")
    if arguments.baseline is None:
        arguments.baseline = "server" if "server" in arguments.arms else "specx:none"
    if arguments.baseline not in arguments.arms:
        parser.error(f"the baseline {arguments.baseline} is not among the arms")
    return arguments


def header(arguments: argparse.Namespace) -> dict[str, Any]:
    """What measurements of one file have in common."""
    return {
        "model": arguments.model.name,
        "model_bytes": arguments.model.stat().st_size,
        "n_predict": arguments.n_predict,
        "ctx_size": arguments.ctx_size,
        "threads": arguments.threads,
        "seed": arguments.seed,
        "specx": version("specx"),
        "llama_cpp_python": version("llama-cpp-python"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def measure(arguments: argparse.Namespace, prompts: Sequence[Prompt], results: Results) -> None:
    """Everything that the results do not hold yet."""
    settings = LoadSettings(
        model=arguments.model,
        n_ctx=arguments.ctx_size,
        threads=arguments.threads,
        threads_batch=arguments.threads,
        store=False,
    )
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for kernels in {specx_arm(name)[1] for name in arguments.arms if name.startswith("specx")} or {
            "stock"
        }:
            chosen = replace(settings, kernels=kernels)
            sessions[kernels] = stack.enter_context(Session.open(chosen, notice=say))
        session = next(iter(sessions.values()))
        template = ChatTemplate(session.chat_template, bos=session.bos_text, eos=session.eos_text)
        arms = [start(name, arguments, sessions, stack) for name in arguments.arms]
        warm_up(arms, session)
        for number, prompt in enumerate(prompts, start=1):
            say(f"{number} of {len(prompts)}: {prompt.category}, {prompt.id}")
            converse(prompt, arms, session, template, arguments, results)


def specx_arm(name: str) -> tuple[str, str]:
    """The drafter and the kernels of an arm of specx."""
    drafter, _, kernels = name.partition(":")[2].partition("@")
    return drafter, kernels or "auto"


def start(name: str, arguments: argparse.Namespace, sessions: dict[str, Session], stack: ExitStack) -> Arm:
    """The arm of that name, ready to answer."""
    if name.startswith("specx"):
        drafter, kernels = specx_arm(name)
        return SpecxArm(name, drafter, sessions[kernels])
    threads, eog = str(arguments.threads), next(iter(sessions.values())).vocab.eog
    common = ["-m", str(arguments.model), "-c", str(arguments.ctx_size), "-t", threads, "-tb", threads]
    common += ["-fa", "on", "--parallel", "1", "--cache-ram", "0", "--no-webui"]
    return stack.enter_context(ServerArm(name, arguments.server, common, eog))


def warm_up(arms: Sequence[Arm], session: Session) -> None:
    """One short answer by each, so that the first measured one pays for nothing but itself."""
    prompt = session.tokenize("Once upon a time", add_special=True, parse_special=False)
    for arm in arms:
        arm.answer(prompt, 8)


def converse(
    prompt: Prompt,
    arms: Sequence[Arm],
    session: Session,
    template: ChatTemplate,
    arguments: argparse.Namespace,
    results: Results,
) -> None:
    """Every turn of a conversation, by every arm."""
    answers: list[str] = []
    for turn in range(prompt.n_turns):
        text = template.render(prompt.conversation(answers), tools=list(prompt.tools) or None)
        tokens = template.tokenize(text, session.tokenize)
        if len(tokens) + arguments.n_predict > session.n_ctx:
            say(f"left out: {prompt.id} has {len(tokens)} tokens, too many for the context")
            return
        case = f"{prompt.id}#{turn}"
        for repeat, arm in schedule(arms, arguments.repeats, f"{arguments.seed}:{case}"):
            if (case, arm.name, repeat) not in results.measurements:
                answer = asdict(arm.answer(tokens, arguments.n_predict))
                results.add(
                    Measurement(case=case, category=prompt.category, arm=arm.name, repeat=repeat, **answer)
                )
        answers.append(results.measurements[case, arms[0].name, 0].text)


def schedule(arms: Sequence[Arm], repeats: int, key: str) -> list[tuple[int, Arm]]:
    """(repeat, arm) in the order to run them: shuffled by `key`, then back and forth."""
    order = list(arms)
    random.Random(key).shuffle(order)
    return [(n, arm) for n in range(repeats) for arm in (order if n % 2 == 0 else order[::-1])]


def say(text: str) -> None:
    """Progress, for the person who waits."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
