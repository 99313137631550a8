"""What `specx plan` predicts, beside what then happens: one row for each model and source of drafts.

Every prompt is answered with drafts and then plainly, in one session that starts from an empty cache and
knows of no draft model but the one that is named. Drafts come first, as they would otherwise be found in the
plain answer, which a session remembers; what was answered to earlier prompts is known, as to every user.

    python benchmarks/predictions.py MODEL.gguf [MODEL.gguf:DRAFT.gguf ...] [--suite default] [--limit 1]

`assumed` is predicted before anything was drafted, `promised` what the plan expected step by step, `recorded`
what the steps took against what the staircase says of single tokens, and `measured` the ratio of the two
answers' times. All are times plain decoding. `same` counts the prompts of which both answers are the same.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from specx.engine.bench.suites import Prompt, load_suite
from specx.engine.report.plan import DraftOption, make_plan
from specx.engine.session import Session
from specx.engine.settings import Asked, AskedModel, SamplingSettings
from specx.engine.text.answer import Result
from specx.engine.text.template import ChatTemplate

GREEDY = SamplingSettings(seed=1, temperature=0.0)


def main() -> int:
    arguments = _parser().parse_args()
    prompts = load_suite(arguments.suite, limit=arguments.limit)
    print(
        f"{'model':<28}{'drafts':<18}{'assumed':>9}{'promised':>9}{'recorded':>9}{'measured':>9}{'tokens':>8}"
        f"{'same':>10}"
    )
    for pair in arguments.models:
        model, _, draft = pair.partition(":")
        with tempfile.TemporaryDirectory() as cache:
            os.environ |= {"SPECX_CACHE": cache, "HOME": cache}
            alone = Path(cache, Path(model).name)  # models beside the target are found, too
            alone.symlink_to(Path(model).resolve())
            drafter = "model" if draft else "auto"
            asked = Asked(alone, drafter=drafter, draft=AskedModel(Path(draft) if draft else None))
            _row(asked, prompts, arguments.n_predict)
    return 0


def _row(asked: Asked, prompts: Sequence[Prompt], n_predict: int) -> None:
    """Predict, answer everything, and print what came of it."""
    draft = asked.draft.model
    wanted = draft.stem if draft else "free drafts"
    assumed = _option(make_plan(asked).options, wanted)
    drafted_ms = plain_ms = 0.0
    same = answered = 0
    with Session.open(asked, notice=lambda text: print(text, file=sys.stderr)) as session:
        for prompt in prompts:
            tokens = _encode(session, prompt)
            if len(tokens) + n_predict > session.n_ctx:
                print(f"{prompt.id} does not fit the context", file=sys.stderr)
                continue
            drafted, plain = both_answers(session, tokens, asked.drafter, n_predict)
            drafted_ms += drafted.timings.predicted_ms
            plain_ms += plain.timings.predicted_ms
            same += drafted.tokens == plain.tokens
            answered += 1
        records = session.learned.records.all()
    record = records[f"model, model {wanted}" if draft else asked.drafter]
    cells = (assumed.predicted or 0.0, record.promised_speedup, record.speedup, plain_ms / drafted_ms)
    figures = "".join(f"{value:9.2f}" for value in cells)
    equal = f"{same} of {answered}"
    print(f"{asked.model.stem:<28}{wanted:<18}{figures}{record.tokens:8.0f}{equal:>10}", flush=True)


def _option(options: Sequence[DraftOption], wanted: str) -> DraftOption:
    return next(option for option in options if option.name == wanted)


def _encode(session: Session, prompt: Prompt) -> list[int]:
    """Token ids of a prompt."""
    template = ChatTemplate(session.chat_template, bos=session.bos_text, eos=session.eos_text)
    if prompt.text:
        return session.tokenize(prompt.text, add_special=True, parse_special=True)
    text = template.render(prompt.conversation(), tools=prompt.tools or None)
    return template.tokenize(text, session.tokenize)


def both_answers(
    session: Session, tokens: Sequence[int], drafter: str, n_predict: int
) -> tuple[Result, Result]:
    """The answer with drafts, which must not know the plain one, and then that."""
    return _answer(session, tokens, drafter, n_predict), _answer(session, tokens, "none", n_predict)


def _answer(session: Session, tokens: Sequence[int], drafter: str, n_predict: int) -> Result:
    """A greedy answer, of which every token is written."""
    session.set_drafter(drafter)
    session.forget_conversation()
    generation = session.generate(tokens, GREEDY, n_predict=n_predict, ignore_eos=True)
    list(generation)
    return generation.result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL[:DRAFT]")
    parser.add_argument("--suite", default="default")
    parser.add_argument("--limit", type=int, default=1, help="prompts of each category")
    parser.add_argument("-n", "--n-predict", type=int, default=96)
    return parser


if __name__ == "__main__":
    sys.exit(main())
