"""`specx plan`: what would be decided for a model on this machine, and why, with the numbers."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from specx.cli.options.parallel import ParallelOptions, read_texts
from specx.cli.options.read import DraftOptions, ModelOptions, read_asked, with_options
from specx.cli.terminal.console import Progress, notice, stdout, write
from specx.cli.terminal.tables import show_table
from specx.engine.setup.explain import gibibytes

if TYPE_CHECKING:
    from specx.engine.report.plan import DraftOption, PlanReport
    from specx.engine.setup.placement import Placement

__all__ = ["register"]

MOST_PLACEMENTS = 12
NARROWEST, STEPS, STEP = 60, 16, 7  # columns of a terminal, of the names of rows, and of a number
MOST_OPTIONS = 8
MOST_UNFIT = 4


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(plan)


@with_options
def plan(
    model: ModelOptions,
    draft: DraftOptions,
    together: ParallelOptions,
    measure: Annotated[
        bool,
        typer.Option("--measure/--no-measure", help="Load the model and measure what was never measured."),
    ] = True,
    refresh: Annotated[bool, typer.Option("--refresh", help="Time its steps anew.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Say what would be decided for a model here, and why: memory, placement, kernels, drafts."""
    from specx.backends.errors import UsageError
    from specx.engine.report.plan import make_plan

    if refresh and not measure:
        raise UsageError("--refresh and --no-measure contradict each other", "leave one of them out")
    asked = read_asked(model, draft)
    if together.parallel is not None:
        asked = replace(asked, texts=read_texts(together.parallel))
    with Progress(f"loading {asked.model.name}") as progress:
        found = make_plan(asked, measure=measure, refresh=refresh, progress=progress.update, notice=notice)
    if json:
        write(json_module.dumps(found.to_json()) + "\n")
    else:
        _show(found)


def _show(found: PlanReport) -> None:
    setup = found.setup
    told = [("", change) for change in setup.changes]
    show_table(("model", setup.name), [*setup.told().items(), *_memory(found), *told])
    if found.placed is not None and len(found.placed.alternatives) > 1:
        _show_placements(found)
    if found.steps:
        _show_steps(found.steps)
    stdout().print()
    show_table(
        ("drafts from", "predicted", "measured", "the prediction rests on"),
        [_draft_option(option) for option in _shown(found.options)],
    )
    if left_out := len(found.options) - len(_shown(found.options)):
        stdout().print(f"and {left_out} more draft models, which promise less (--json lists them)")
    for unfit in found.unfit[:MOST_UNFIT]:
        stdout().print(f"{unfit.name} cannot draft: {unfit.reason}")
    if len(found.unfit) > MOST_UNFIT:
        stdout().print(f"nor can {len(found.unfit) - MOST_UNFIT} more models (--json lists them)")
    stdout().print()
    for line in _conclusion(found):
        stdout().print(line)


def _memory(found: PlanReport) -> list[tuple[str, str]]:
    """Rows about memory: how much, and what for."""
    from specx.engine.setup.fit import Room

    need = found.setup.need
    parts = (
        (need.weights, "weights"),
        (need.kv, "cache"),
        (need.compute + need.logits, "computing"),
        (need.draft, "draft model"),
        (need.drafter + need.base, "the rest"),
    )
    listed = ", ".join(f"{what} {gibibytes(nbytes)}" for nbytes, what in parts if nbytes)
    gpu = f", and {gibibytes(need.gpu)} on GPUs" if need.gpu else ""
    of = ""
    if found.available is not None:
        fits = "it does not fit" if need.working > found.available else "it may not fit"
        if Room(found.available, None, None).is_enough(need):
            fits = "it fits"
        of = f" of {gibibytes(found.available)} available: {fits}"
    return [("memory", f"{gibibytes(need.working)}{of}"), ("", f"{listed}{gpu}")]


def _show_placements(found: PlanReport) -> None:
    assert found.placed is not None
    stdout().print()
    rows = [
        (option.described(), f"{option.rate:.1f}", _sizes(option), found.placed.reason(option) or "best")
        for option in found.placed.alternatives[:MOST_PLACEMENTS]
    ]
    show_table(("placement", "tokens/s", "memory", ""), rows)


def _sizes(option: Placement) -> str:
    return ", ".join(f"{name} {gibibytes(nbytes)}" for name, nbytes in option.memory.items())


def _show_steps(steps: dict[int, float]) -> None:
    """Milliseconds by width, and how many times those of a single token."""
    widths = sorted(steps)
    most = (max(stdout().width, NARROWEST) - STEPS) // STEP
    shown = widths if len(widths) <= most else [n for n in widths if n & (n - 1) == 0]
    stdout().print()
    show_table(
        ("tokens of a step", *(str(n) for n in shown)),
        [
            ("milliseconds", *(f"{steps[n]:.1f}" for n in shown)),
            ("times one token", *(f"{steps[n] / steps[1]:.2f}" for n in shown)),
        ],
    )


def _shown(options: Sequence[DraftOption]) -> list[DraftOption]:
    """The best ones, and those that are no draft models."""
    return [option for i, option in enumerate(options) if i < MOST_OPTIONS or option.path is None]


def _draft_option(option: DraftOption) -> tuple[str, str, str, str]:
    predicted = "-" if option.predicted is None else f"{option.predicted:.2f}x"
    measured = "-" if option.measured is None else f"{option.measured:.2f}x over {option.tokens:,} tokens"
    return option.name, predicted, measured, option.basis


def _conclusion(found: PlanReport) -> list[str]:
    """What is best, and what would help most."""
    best = found.options[0]
    if not found.steps:
        return ["nothing was measured yet: leave --no-measure out to know more"]
    plain = 1e3 / found.steps[1]
    rate = f"about {plain * best.value:.0f} tokens/s in a short context"
    if best.name != "none":
        lines = [f"{best.name}: {best.value:.2f}x plain decoding, {rate} (plain: {plain:.0f})"]
    elif any(option.predicted is None and option.measured is None for option in found.options):
        lines = [
            f"which drafts pay is not known, as the machine was busy (plain decoding: {rate}): "
            "plan again when it is quiet"
        ]
    else:
        lines = [f"plain decoding is best, {rate} (plain: {plain:.0f})"]
    for i, advice in enumerate(found.advice):
        gain = f" ({advice.factor:.1f}x of now)" if advice.factor > 1 else ""
        command = f": {advice.command}" if advice.command else ""
        lines.append(f"{'what would help most' if i == 0 else 'also'}: {advice.text}{gain}{command}")
    return lines
