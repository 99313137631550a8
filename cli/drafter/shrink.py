"""`specx drafter shrink`: a drafter of fewer layers and bits, made from the model itself."""

from __future__ import annotations

import json as json_module
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specx.backends.errors import SpecxError, UsageError
from specx.backends.places import expanded
from specx.cli.drafter.steps import Steps
from specx.cli.options.values import duration
from specx.cli.terminal.console import notice, stdout, write
from specx.cli.terminal.tables import show_table
from specx.engine.setup.explain import gibibytes

if TYPE_CHECKING:
    from specx.engine.making.prospects import ShrinkStage
    from specx.engine.making.shrink import ShrinkReport

__all__ = ["register"]

AUTO = "auto"


def register(group: typer.Typer) -> None:
    """Add the command to `group`."""
    group.command()(shrink)


def shrink(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The model to make a drafter of.")],
    layers: Annotated[
        str, typer.Option("--layers", metavar="auto|N", help="Layers to keep; auto: what promises most.")
    ] = AUTO,
    quant: Annotated[
        str, typer.Option("--quant", metavar="TYPE", help="Quantization: auto, keep, Q4_0, Q8_0, ...")
    ] = AUTO,
    trim: Annotated[
        int | None, typer.Option("--trim", metavar="K", min=1, help="Let it score so many tokens only.")
    ] = None,
    time: Annotated[
        str, typer.Option("--time", metavar="TIME", help="Limit of the search for layers: 90s, 10m, 1h.")
    ] = "10m",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The file to write.", show_default="TARGET-shrunk.gguf"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with a search that was interrupted.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Make a drafter of some of a model's own layers: chosen by how often they alone are right."""
    from specx.backends.hub.models import find_model
    from specx.engine.making.shrink import Shrinking, Wanted, check_quant
    from specx.engine.making.shrink import shrink as make
    from specx.engine.settings import Asked

    wanted = Wanted(
        layers=_layers(layers),
        quant=check_quant(quant),
        trim=trim,
        seconds=duration("--time", time, least=1),
        output=None if output is None else expanded(output),
        force=force,
        resume=resume,
    )
    with Steps() as steps:
        report = make(Asked(find_model(target)), wanted, Shrinking(steps.update, notice))
    if json:
        write(json_module.dumps(report.to_json()) + "\n")
    else:
        _show(report)
    if report.path is None:
        raise _pays_nothing(report)


def _layers(text: str) -> int | None:
    if text.lower() == AUTO:
        return None
    if re.fullmatch(r"\d{1,4}", text):
        return int(text)
    raise UsageError(f"--layers is {text!r}", "give a number of layers, or auto")


def _show(report: ShrinkReport) -> None:
    show_table(("layers", "right", "cost", "predicted", ""), [_row(report, stage) for stage in report.stages])
    quant = "as they are" if report.quant == "keep" else f"in {report.quant}"
    stdout().print(
        f"right: of {report.scored} tokens that {report.model.stem} wrote, by those layers {quant}\n"
        "cost, predicted: of a drafted token, and all in all, in times of plain decoding"
    )
    if not report.complete:
        stdout().print("the time was up first: run it again to go on, or give it more --time")
    if report.path is not None:
        size = gibibytes(report.path.stat().st_size)
        stdout().print(f"written: {report.path} ({size}); delete it to undo this")


def _row(report: ShrinkReport, stage: ShrinkStage) -> tuple[str, ...]:
    mark = "" if stage != report.chosen else "best" if report.path is None else "written"
    predicted = "-" if stage.speedup is None else f"{stage.speedup:.2f}x"
    return f"{stage.layers}", f"{stage.agreement:.1%}", f"{stage.cost:.2f}x", predicted, mark


def _pays_nothing(report: ShrinkReport) -> SpecxError:
    name, best = report.model.name, report.chosen
    if best.layers == report.blocks:
        return SpecxError(
            f"no drafter made of {name} pays here: even the fewest layers take too long",
            "free drafts take no time of a model; --layers N writes a drafter all the same",
        )
    return SpecxError(
        f"no drafter made of {name} pays here: the best has {best.layers} of {report.blocks} layers, "
        f"is right {best.agreement:.0%} of the time and gives {best.speedup or 0:.2f}x plain speed",
        f"--layers {best.layers} writes it all the same",
    )
