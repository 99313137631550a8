"""`specx serve`: a model for other programs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from specx.backends.errors import SpecxError, UsageError
from specx.cli.options.adapting import AdaptOptions
from specx.cli.options.panels import panel
from specx.cli.options.parallel import read_texts
from specx.cli.options.read import (
    DraftOptions,
    ModelOptions,
    SamplingOptions,
    read_asked,
    sampling_settings,
    with_options,
)
from specx.cli.options.values import one_at_most
from specx.cli.resident.background import begin, command_line, forget, show_servers, stop_servers, told
from specx.cli.resident.options import ResidentOptions
from specx.cli.resident.place import Place, Record, place_of
from specx.cli.terminal.console import notice, write
from specx.cli.terminal.files import check_folder, read_text

if TYPE_CHECKING:
    from specx.cli.serve.routes import Api
    from specx.cli.serve.run import Places
    from specx.engine.settings import Asked, SamplingSettings

__all__ = ["ServeOptions", "register", "serve"]

PORT = 8080

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")

_option = panel("Server")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where the server listens, who may ask, and how much at once."""

    TEXTS: ClassVar = ("api_key", "cors", "alias")  # what must be UTF-8

    host: Annotated[
        str,
        _option(
            "--host",
            text="Where to listen; 0.0.0.0 is every network.",
            metavar="HOST",
            envvar="LLAMA_ARG_HOST",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int | None,
        _option(
            "--port",
            text="The port; 0 picks a free one and writes the address to standard output.",
            envvar="LLAMA_ARG_PORT",
            show_default=f"{PORT}, none with --socket",
        ),
    ] = None
    socket: Annotated[
        Path | None,
        _option("--socket", text="Listen at a Unix socket that only you can open.", metavar="PATH"),
    ] = None
    api_key: Annotated[
        list[str] | None,
        _option(
            "--api-key",
            text="A key that requests must carry. May be repeated.",
            metavar="KEY",
            envvar=["SPECX_API_KEY", "LLAMA_API_KEY"],
            show_envvar=False,
        ),
    ] = None
    api_key_file: Annotated[Path | None, _option("--api-key-file", text="A file with keys, one a line.")] = (
        None
    )
    cors: Annotated[
        list[str] | None,
        _option(
            "--cors",
            text="A web page that may ask, by its origin; * is any. May be repeated.",
            metavar="ORIGIN",
        ),
    ] = None
    parallel: Annotated[
        str,
        _option(
            "-np",
            "--parallel",
            text="Texts that are written at once; auto is what pays and fits.",
            metavar="N|auto",
            envvar="LLAMA_ARG_N_PARALLEL",
        ),
    ] = "auto"
    queue: Annotated[int, _option("--queue", text="Texts that may wait; beyond them requests get 429.")] = 128
    timeout: Annotated[
        float,
        _option(
            "-to",
            "--timeout",
            text="Seconds that a client may take to send a request, or to take what is sent.",
            envvar="LLAMA_ARG_TIMEOUT",
        ),
    ] = 600.0
    alias: Annotated[
        str | None,
        _option(
            "-a",
            "--alias",
            text="What responses call the model.",
            metavar="NAME",
            envvar="LLAMA_ARG_ALIAS",
            show_default="the file's name",
        ),
    ] = None
    n_predict: Annotated[
        int,
        _option(
            "-n",
            "--n-predict",
            "--predict",
            text="Most tokens of an answer, where a request does not say; -1 is no limit.",
            envvar="LLAMA_ARG_N_PREDICT",
        ),
    ] = -1


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(serve)


@with_options
def serve(
    model: ModelOptions,
    draft: DraftOptions,
    learning: AdaptOptions,
    sampling: SamplingOptions,
    options: ServeOptions,
    resident: ResidentOptions,
) -> None:
    """Answer other programs, over HTTP and as OpenAI's API does.

    Nothing beyond this machine can ask unless --host says so. Ctrl-C stops it. Sampling options hold where a
    request does not say. `specx complete` and `specx chat` use its model instead of loading it, if they ask
    for the same.
    """
    if _is_about_others(model, resident):
        return
    asked = learning.of(replace(read_asked(model, draft), texts=read_texts(options.parallel)))
    chosen, idle_s = sampling_settings(sampling), resident.idle_s
    _check(options)
    place = place_of(asked, make=True) if resident.background else _place(asked)
    if resident.background and place is not None and not begin(place):
        return
    from specx.cli.generation import load_session
    from specx.cli.serve.run import Life

    api = _api(options, chosen, options.alias or asked.model.stem, log=model.verbose)
    places = _listen(options, place, alone=resident.background)
    life = Life(
        api,
        places,
        lambda: load_session(asked),
        most_waiting=options.queue,
        idle_s=idle_s,
        verbose=model.verbose,
    )
    with ExitStack() as stack:
        if place is not None and places.resident is not None:
            log = place.log if resident.background else None
            record = Record(
                place, os.getpid(), asked.model.absolute(), command_line(), log=log, idle_s=idle_s
            )
            stack.enter_context(told(record))
            life.at_once = partial(forget, record)
        life.run()


def _is_about_others(model: ModelOptions, resident: ResidentOptions) -> bool:
    """List or end servers that run already, if that is asked for.

    Raises:
        UsageError: two such things are asked for at once.
    """
    one_at_most({f"--{name}": getattr(resident, name) for name in ("background", "status", "stop")})
    if resident.every and not resident.stop:
        raise UsageError("--all is given without --stop", "specx serve --stop --all ends all servers")
    if resident.status:
        show_servers()
    elif resident.stop:
        named = model.model or model.model_flag or model.hf_repo
        one_at_most({"a model": named, "--all": resident.every})
        stop_servers(read_asked(model).model if named else None, every=resident.every)
    return resident.status or resident.stop


def _place(asked: Asked) -> Place | None:
    """Where commands look for this model; None where nothing can be told them."""
    try:
        return place_of(asked, make=True)
    except SpecxError as problem:
        notice(f"specx's own commands cannot use this server: {problem.message}")
        return None


def _check(options: ServeOptions) -> None:
    """Raises UsageError if a value makes no sense."""
    for flag, value, lowest in (("--queue", options.queue, 0), ("-n/--n-predict", options.n_predict, -1)):
        if value < lowest:
            raise UsageError(f"{flag} is {value}", f"give a number of at least {lowest}")
    if not options.timeout > 0:
        raise UsageError(f"-to/--timeout is {options.timeout:g}", "give a number of seconds above 0")
    if options.alias is not None and not options.alias.strip():
        raise UsageError("-a/--alias is empty", "leave it out, or give a name")
    if options.port is not None and not 0 <= options.port <= 65535:
        raise UsageError(f"--port is {options.port}", "give a number from 0 to 65535")


def _api(options: ServeOptions, sampling: SamplingSettings, name: str, *, log: bool) -> Api:
    """What is answered, and to whom."""
    from specx.cli.serve.gate import Policy
    from specx.cli.serve.listen import is_loopback
    from specx.cli.serve.routes import Api
    from specx.engine.api.asks import Defaults

    policy = Policy(_keys(options), _origins(options.cors or ()), is_loopback(options.host), options.timeout)
    limit = None if options.n_predict < 0 else options.n_predict
    defaults = Defaults(sampling=sampling, n_predict=limit, model=name)
    return Api(policy, defaults, _report, notice if log else None)


def _keys(options: ServeOptions) -> tuple[str, ...]:
    lines = [] if options.api_key_file is None else read_text(options.api_key_file).splitlines()
    keys = [key.strip() for key in (*(options.api_key or ()), *lines)]
    if options.api_key is not None and "" in keys[: len(options.api_key)]:
        raise UsageError("--api-key is empty", "leave it out, or give a key")
    keys = [key for key in keys if key]
    if options.api_key_file is not None and not keys:
        raise UsageError(f"{options.api_key_file} has no key in it", "write one a line")
    return tuple(keys)


def _origins(origins: Sequence[str]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise UsageError(
                f"--cors is {origin!r}", "give an origin such as https://example.org or http://localhost:3000"
            )
    return tuple(origins)


def _report(problem: Exception) -> None:
    """An exception that nobody has foreseen; its message may hold what somebody typed, so it is not told."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = (
        "" if trace is None else f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
    )
    notice(f"a request failed with an unexpected {type(problem).__name__}{where}: please report it")


def _listen(options: ServeOptions, place: Place | None, *, alone: bool) -> Places:
    """Every place where it is to listen.

    Args:
        options: what was asked.
        place: where commands of this user look for the model.
        alone: there only, unless more is asked for.
    """
    from specx.cli.serve.listen import ListenError, UnixSocket, listen_tcp
    from specx.cli.serve.run import Places

    places = Places()
    try:
        if options.port is not None or not (alone or options.socket):
            places = Places(listen_tcp(options.host, PORT if options.port is None else options.port))
        if options.socket is not None:
            check_folder(options.socket)
            places = replace(places, unix=[UnixSocket(options.socket)])
        if place is not None:
            try:
                places = replace(places, resident=UnixSocket(place.socket))
            except ListenError:
                if alone:
                    raise  # else another server of this model is asked, which is as good
    except SpecxError:
        places.remove()
        raise
    _tell(options, places)
    return places


def _tell(options: ServeOptions, places: Places) -> None:
    """What somebody must know of where it listens."""
    from specx.cli.serve.listen import is_loopback

    if places.tcp and not is_loopback(options.host):
        keyless = "" if _keys(options) else ", and no --api-key is needed"
        notice(f"other machines can ask at {places.names[0]}{keyless}")
    if places.tcp and options.port == 0:
        write(f"{places.names[0]}\n")
