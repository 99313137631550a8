"""`specx probe`: what this machine is, what it can do, and what a model's steps cost on it."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specx.backends.errors import UsageError
from specx.cli.options.read import ModelOptions, read_asked, rpc_servers, with_options
from specx.cli.terminal.console import Progress, notice, stdout, write
from specx.cli.terminal.files import check_plot
from specx.cli.terminal.tables import show_table

if TYPE_CHECKING:
    from specx.engine.report.staircase import StaircaseProbe
    from specx.engine.settings import Asked

__all__ = ["register"]

DEPTH = 256


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(probe)


@with_options
def probe(
    model: ModelOptions,
    staircase: Annotated[
        bool, typer.Option("--staircase", help="Time steps of 1 to 32 tokens, on each of the kernels.")
    ] = False,
    depth: Annotated[
        list[int] | None,
        typer.Option(
            "--depth",
            metavar="N",
            min=0,
            help="Tokens of context, for --staircase. May be repeated.",
            show_default="256",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the staircases into a PNG, SVG or PDF file."),
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Measure anew what an earlier run measured.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Say what this machine is and can do; with a model, find the number of threads that is best for it.

    What is measured is kept, and used by every other command.
    """
    if staircase:
        if refresh:
            raise UsageError("--staircase measures anew each time", "leave --refresh out")
        _probe_staircase(read_asked(model), depth or [DEPTH], plot, json=json)
        return
    for name, given in (("--depth", depth), ("--plot", plot)):
        if given:
            raise UsageError(f"{name} is about staircases", "say --staircase as well, or leave it out")
    named = any(name is not None for name in (model.model, model.model_flag, model.hf_repo))
    asked = read_asked(model) if named else None
    if asked and (asked.threads or asked.threads_batch):
        notice("the number of threads is what is measured: -t and -tb do not count")
    _probe_machine(asked, rpc_servers(model), keep=not model.no_cache, refresh=refresh, json=json)


def _probe_machine(asked: Asked | None, rpc: Sequence[str], *, keep: bool, refresh: bool, json: bool) -> None:
    from specx.cli.probe_tables import show_machine, show_model
    from specx.engine.report.machine import probe_machine, probe_model

    with Progress("reading memory") as progress:
        machine = probe_machine(store=keep, refresh=refresh, progress=progress.update, notice=notice, rpc=rpc)
    found = None
    if not json:
        show_machine(machine)
    if asked is not None:
        with Progress(f"loading {asked.model.name}") as loading, Progress("trying threads") as trying:

            def tried(fraction: float) -> None:
                loading.close()  # a terminal shows one bar at a time
                trying.update(fraction)

            found = probe_model(asked, refresh=refresh, loading=loading.update, progress=tried, notice=notice)
    if json:
        record = {**machine.to_json(), "model": found and found.to_json()}
        write(json_module.dumps(record) + "\n")
    elif found is not None:
        show_model(found)


def _probe_staircase(asked: Asked, depths: list[int], plot: Path | None, *, json: bool) -> None:
    from specx.engine.report.staircase import probe_staircases

    if plot is not None:
        check_plot(plot)
    with Progress(f"loading {asked.model.name}") as loading, Progress("timing steps") as timing:

        def timed(fraction: float) -> None:
            loading.close()  # a terminal shows one bar at a time
            timing.update(fraction)

        found = probe_staircases(asked, depths, loading=loading.update, progress=timed, notice=notice)
    if plot is not None:
        from specx.cli.probe_plots import draw_staircases

        draw_staircases(found, plot, title=asked.model.stem)
        notice(f"drawn into {plot}")
    if json:
        write(json_module.dumps(found.to_json()) + "\n")
    else:
        _show(found)


def _show(found: StaircaseProbe) -> None:
    """One table a depth: milliseconds, the ratio to a single token, and what bounds them."""
    steps, line = found.comparison.steps, found.roofline
    gigabytes = found.weight_bytes / 1e9
    ours = found.auto if found.auto in steps else "stock"
    for depth in steps["stock"]:
        stdout().print(f"milliseconds of a step after {depth} tokens, and times those of a single token")
        rows = []
        for n in steps["stock"][depth]:
            cells = [f"{_ms(by[depth][n])} ({by[depth][n] / by[depth][1]:.2f})" for by in steps.values()]
            bound = line.bounds[depth][n]
            computing = "?" if bound.computing is None else f"{bound.computing:.1f}"
            rows.append(
                (str(n), *cells, f"{bound.reading:.1f}", computing, f"{found.over(ours, depth, n):.2f}x")
            )
        show_table(("tokens", *steps, "reading", "computing", "bound"), rows)
        for name, by in steps.items():
            rate = gigabytes / by[depth][1] * 1e3
            share = rate * 1e9 / found.bandwidth
            stdout().print(
                f"{name}: a single token reads {gigabytes:.2f} GB of weights at {rate:.1f} GB/s, {share:.0%}"
            )
        stdout().print()
    stdout().print(f"threads: {found.threads.value}, {found.threads.why}")
    stdout().print(f"memory: {found.bandwidth / 1e9:.1f} GB/s")
    if line.peak:
        stdout().print(
            f"integers of 8 bits: {line.peak / 1e9:.0f} billion operations/s with {line.instructions}; "
            f"a token takes {2 * line.products / 1e9:.2f} billion"
        )
    stdout().print(
        "reading, computing: milliseconds that these take at least; the larger is the bound\n"
        f"bound: how many times as long {ours} takes"
    )
    stdout().print(f"--kernels auto takes {found.auto}")


def _ms(milliseconds: float) -> str:
    """Few enough digits that three kernels have room beside each other."""
    return f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:.0f}"
