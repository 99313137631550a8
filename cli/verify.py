"""`specx verify`: does speculation change the text of this model on this machine?"""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specx.cli.options.parallel import ParallelOptions, read_texts
from specx.cli.options.read import DraftOptions, ModelOptions, read_asked, with_options
from specx.cli.terminal.console import Progress, notice, stdout, write
from specx.cli.terminal.tables import show_table

if TYPE_CHECKING:
    from specx.engine.bench.suites import Prompt
    from specx.engine.cost.identity import Identity
    from specx.engine.report.certificate import Comparison
    from specx.engine.session import Session

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(verify)


@with_options
def verify(
    model: ModelOptions,
    draft: DraftOptions,
    parallel: ParallelOptions,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Prompts to use instead of the built-in ones: lines, or JSON with messages or turns.",
        ),
    ] = None,
    n_predict: Annotated[
        int, typer.Option("-n", "--n-predict", metavar="N", min=1, help="Tokens of each generation.")
    ] = 64,
    seed: Annotated[
        int, typer.Option("-s", "--seed", metavar="N", min=0, help="Seed of the first prompt.")
    ] = 1,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Compare drafted text with plain text, token by token, and say how exact this machine is.

    With --parallel also texts that are written together with each alone.

    Exits with 1 if a text differs for any reason but a near-tie within the measured numerical difference.
    """
    from specx.cli.generation import load_session
    from specx.engine.bench.suites import Prompt, load_suite
    from specx.engine.report.certificate import PROMPTS

    builtin = [Prompt(text, "verify", ({"role": "user", "content": text},)) for text in PROMPTS]
    chosen = builtin if prompts is None else load_suite(prompts)
    texts = 1 if parallel.parallel is None else read_texts(parallel.parallel)
    with load_session(replace(read_asked(model, draft), texts=texts)) as session:
        with Progress("comparing widths") as progress:
            identity = session.measure_identity(progress.update)
        encoded = [_encode(session, prompt) for prompt in chosen]
        seen = _compare(session, encoded, n_predict=n_predict, seed=seed, together=texts != 1)
        # With --exact every width in use is identical, so nothing may differ at all.
        tolerance = 0.0 if session.plan.widths is not None or identity.exact_trees else identity.difference
        report = _report(session, identity, seen, tolerance)
    if json:
        write(json_module.dumps(report) + "\n")
    else:
        _print(report, identity, seen)
    if report["unexplained"]:
        raise typer.Exit(1)


def _compare(
    session: Session, encoded: Sequence[list[int]], *, n_predict: int, seed: int, together: bool
) -> list[Comparison]:
    """Drafted texts against plain ones and, if that is asked for, texts in company against each alone."""
    from specx.engine.report.certificate import compare_drafters, compare_together, with_longer

    # Without a draft model `free` is `auto` once more.
    left_out = ("none",) if "model" in session.drafters else ("none", "free")
    drafters = [name for name in session.drafters if name not in left_out]
    company = with_longer(encoded, session.n_ctx - n_predict - 1) if together else []
    total = len(encoded) * 3 * len(drafters) + len(company) * 3 * 2
    seen: list[Comparison] = []
    with Progress("comparing texts") as progress:

        def done(comparison: Comparison) -> None:
            seen.append(comparison)
            progress.count(len(seen), total)

        compare_drafters(session, encoded, drafters=drafters, n_predict=n_predict, seed=seed, done=done)
        if company:
            compare_together(session, company, n_predict=n_predict, seed=seed, done=done)
    return seen


def _encode(session: Session, prompt: Prompt) -> list[int]:
    """Token ids of a prompt: of a conversation up to the model's first answer."""
    from specx.engine.text.template import template_of

    if prompt.text:
        return session.tokenize(prompt.text, add_special=True, parse_special=True)
    template = template_of(session)
    text = template.render(prompt.conversation(), tools=prompt.tools or None)
    return template.tokenize(text, session.tokenize)


def _report(
    session: Session, identity: Identity, seen: Sequence[Comparison], tolerance: float
) -> dict[str, Any]:
    different = [c for c in seen if c.first_difference is not None]
    unexplained = [c for c in different if not c.explained(tolerance)]
    if unexplained:
        verdict = "NOT exact"
    elif different:
        verdict = "exact up to ties"
    elif session.plan.widths is not None or identity.exact_trees:
        verdict = "exact"
    else:
        verdict = "exact on these prompts, up to ties in general"
    return {
        "model": session.model_name,
        "verdict": verdict,
        "identical_widths": [list(members) for members in identity.classes],
        "branches_identical": identity.branches if session.model.facts.max_leaves > 1 else None,
        "depths": list(identity.depths),
        "logit_difference": identity.difference,
        "texts": session.at_once,
        "held_to_widths": sorted(session.plan.widths) if session.plan.widths is not None else None,
        "compared": len(seen),
        "identical": len(seen) - len(different),
        "tokens": sum(c.tokens for c in seen),
        "unexplained": len(unexplained),
        "differences": [asdict(c) for c in different],
    }


def _print(report: dict[str, Any], identity: Identity, seen: Sequence[Comparison]) -> None:
    console = stdout()
    classes = "; ".join(", ".join(map(str, members)) for members in identity.classes)
    console.print(f"model: {report['model']}")
    console.print(f"batch widths with bit-identical logits: {classes}")
    branches = {
        True: "leaves logits bit-identical",
        False: "changes the last bits of logits",
        None: "cannot matter here, where drafts are chains",
    }
    console.print(f"accepting a branch of a tree {branches[report['branches_identical']]}")
    console.print(f"largest difference of a logit between shapes: {identity.difference:.3g}")
    rows = []
    for drafter in dict.fromkeys(c.drafter for c in seen):
        for temperature in dict.fromkeys(c.temperature for c in seen):
            group = [c for c in seen if (c.drafter, c.temperature) == (drafter, temperature)]
            apart = [c for c in group if c.first_difference is not None]
            places = ", ".join(
                f"{c.first_difference}: {c.logit_difference:.2g}, {c.margin:.2g}" for c in apart
            )
            same = str(len(group) - len(apart))
            rows.append((drafter, f"{temperature:g}", str(len(group)), same, places or "none"))
    differences = "first differences (token: logits, margin)"
    show_table(("drafter", "temperature", "texts", "identical", differences), rows)
    console.print(f"verdict: {report['verdict']}")
    if report["unexplained"]:
        notice("a difference larger than numerics explain is a fault in specx: please report it with --json")
    elif report["differences"] and report["held_to_widths"] is None:
        notice(
            "hold the widths with --exact, or keep the KV cache in q8_0 (-ctk q8_0 -ctv q8_0), to end these"
        )
