"""`specx bench`: how fast is every way to decode this model here, and does it say the same?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from specx.backends.errors import SpecxError, UsageError
from specx.cli import INTERRUPTED
from specx.cli.options.bench import (
    GreedyOptions,
    ResultOptions,
    SweptDraftOptions,
    SweptModelOptions,
    WorkOptions,
    bench_settings,
    check_results,
    load_work,
)
from specx.cli.options.read import with_options
from specx.cli.terminal.console import Progress, notice, write

if TYPE_CHECKING:
    from specx.engine.bench.compare import RunComparison
    from specx.engine.bench.records import Run
    from specx.engine.bench.report import Report
    from specx.engine.bench.run import Bench
    from specx.engine.bench.setup import BenchSettings, Opened

__all__ = ["register"]

SHOWN_LEFT_OUT = 3


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(bench)


@with_options
def bench(
    model: SweptModelOptions,
    draft: SweptDraftOptions,
    sampling: GreedyOptions,
    work: WorkOptions,
    results: ResultOptions,
) -> None:
    """Compare drafted with plain decoding: speed, latency and text, taking turns on the same prompts.

    Ctrl-C ends it early; what was measured until then is reported as partial, with exit code 130.
    """
    from specx.cli.bench.files import read_run, result_path

    check_results(results)
    before = None if results.compare is None else read_run(results.compare)
    target = None if results.save is None else result_path(results.save)
    failure: SpecxError | None = None
    if results.load_from is not None:
        run = read_run(results.load_from)
        run.baseline = _known_baseline(run, results.baseline) or run.baseline
    else:
        run, failure = _measure(model, draft, sampling, work, results)
    if run.answers:
        _publish(run, before, results, target)
    if failure is not None:
        raise failure
    if run.partial and results.load_from is None:
        raise typer.Exit(INTERRUPTED)
    peers = {arm.name for arm in run.arms if arm.peer}
    if results.strict and any(parting.arm not in peers for parting in run.partings):
        raise typer.Exit(1)


def _known_baseline(run: Run, name: str) -> str:
    names = [arm.name for arm in run.arms]
    if name and name not in names:
        raise UsageError(f"--baseline is {name!r}", f"the arms are {', '.join(names)}")
    return name


def _measure(
    model: SweptModelOptions,
    draft: SweptDraftOptions,
    sampling: GreedyOptions,
    work: WorkOptions,
    results: ResultOptions,
) -> tuple[Run, SpecxError | None]:
    """The run, and what ended it if something did after the first answer."""
    from specx.engine.bench.cases import CaseMaker
    from specx.engine.bench.run import Bench
    from specx.engine.bench.setup import open_bench, open_peers

    settings = bench_settings(model, draft, sampling, work, results)
    seed = settings.sampling.seed or 0
    items = load_work(work, seed)
    with ExitStack() as stack:
        with Progress(f"loading {settings.asked.model.name}") as progress:
            opened = stack.enter_context(open_bench(settings, progress=progress.update, notice=notice))
        stack.enter_context(open_peers(settings, opened))
        opened.run.settings["suite"] = work.synthetic or work.suite
        session = opened.sessions[opened.arms[0].info.name]
        maker = CaseMaker(session, settings.n_predict, seed, ignore_eos=settings.ignore_eos)
        bench = Bench(opened.arms, items, maker, rounds=settings.rounds, turns=settings.turns, seed=seed)
        failure = _fill(opened, bench, streamed=results.output == "jsonl")
        if opened.run.answers:
            _finish(opened, bench, settings, explain=failure is None and not opened.run.partial)
    return opened.run, failure


def _fill(opened: Opened, bench: Bench, *, streamed: bool) -> SpecxError | None:
    """Measure until the end, an error or Ctrl-C; what ended it early, if something did.

    Raises:
        SpecxError: there is nothing to measure, or the first answer failed.
    """
    import time

    from specx.cli.bench.files import answer_line, header_line
    from specx.cli.bench.tables import duration

    run = opened.run
    expected = bench.warm_up()
    run.left_out = bench.left_out
    for reason in bench.left_out[:SHOWN_LEFT_OUT]:
        notice(f"left out: {reason}")
    if len(bench.left_out) > SHOWN_LEFT_OUT:
        notice(f"left out: {len(bench.left_out) - SHOWN_LEFT_OUT} more")
    if expected is None:
        raise UsageError("no prompt fits the context", "give it more room with -c, or take another --suite")
    notice(f"{bench.total} answers by {len(opened.arms)} arms: about {duration(expected)}")
    if streamed:
        write(header_line(run))
    start = time.perf_counter()
    try:
        with Progress("measuring", remaining=True) as progress:
            for answer in bench.answers():
                run.answers.append(answer)
                progress.count(len(run.answers), bench.total)
                if streamed:
                    write(answer_line(answer))
    except KeyboardInterrupt:
        run.partial = True
        if not run.answers:
            raise
        notice("interrupted: this is what was measured until then")
    except SpecxError as problem:
        run.partial = True
        if not run.answers:
            raise
        return problem
    finally:
        run.seconds = round(time.perf_counter() - start, 3)
    return None


def _finish(opened: Opened, bench: Bench, settings: BenchSettings, *, explain: bool) -> None:
    """Everything about a run that its answers do not say."""
    from specx.engine.bench.identity import explain_partings, find_partings
    from specx.engine.bench.setup import load_average

    run = opened.run
    run.arms = [arm.info for arm in opened.arms]
    run.load_average += load_average()
    run.partings = find_partings(run.answers, run.arms)
    for arm in run.specx_arms:
        if arm.name == arm.plain:
            staircase = opened.sessions[arm.name].staircase
            run.staircases[arm.name] = {
                str(depth): {str(n): round(ms, 4) for n, ms in staircase.steps(depth).items()}
                for depth in staircase.depths
            }
    if explain and run.partings:
        with Progress("looking at differences") as progress:
            run.partings = explain_partings(
                run.partings, opened.sessions, bench.asked, settings.sampling, progress.count
            )


def _publish(run: Run, before: Run | None, options: ResultOptions, target: Path | None) -> None:
    """Save, draw and show a run; it is saved first, so that nothing later can lose it."""
    from specx.cli.bench.files import end_line, save_run
    from specx.cli.bench.formats import as_csv, as_json, as_markdown, extras
    from specx.engine.bench.compare import compare_runs
    from specx.engine.bench.report import make_report

    if target is not None:
        save_run(run, target)
        notice(f"kept as {target}")
    report = make_report(run)
    comparison = None if before is None else compare_runs(run, before)
    if options.plot is not None:
        from specx.cli.bench.plots import draw_bench

        draw_bench(run, report, options.plot)
        notice(f"drawn into {options.plot}")
    writers: dict[str, Callable[[], str]] = {
        "csv": lambda: as_csv(run, report),
        "md": lambda: as_markdown(run, report),
        "json": lambda: as_json(run, report, comparison),
        "jsonl": lambda: end_line(run, extras(report, comparison)),
    }
    if options.output in writers:
        write(writers[options.output]())
    else:
        _show(run, report, comparison)


def _show(run: Run, report: Report, comparison: RunComparison | None) -> None:
    from specx.cli.bench.tables import show_comparison, show_report

    show_report(run, report)
    if comparison is not None:
        show_comparison(comparison)
