"""How long a trained head's drafts are right, by category: free-running greedy chains on held-out prompts.

The target answers prompts greedily, reads the answers again, and the head's chains are computed in torch from
the weights of its file (specx.drafters.train.chains). What is printed is the mean number of tokens of a step,
the target's own included, and the share of the first, second and further drafted tokens that were right of
those that were reached.

    python benchmarks/head_acceptance.py MODEL.gguf HEAD.gguf PROMPTS.jsonl... --prompts 10 --tokens 128
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import read_gguf
from specx.drafters.train.batches import Batches, Rows
from specx.drafters.train.capture import read_states
from specx.drafters.train.chains import measure_chains
from specx.drafters.train.head import Head
from specx.drafters.train.loaded import read_trained
from specx.drafters.train.shape import HeadShape
from specx.drafters.train.states import Layout, StatesFile, StatesWriter
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

N_CTX = 1536
AT_ONCE = 16


def main() -> int:
    """Measure, and print a table; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("head", type=Path)
    parser.add_argument("prompts_files", type=Path, nargs="+", help="JSON lines with `turns` and `category`")
    parser.add_argument("--prompts", type=int, default=10, help="of each category")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("-t", "--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    head, rows = read_trained(read_runnable(args.model), read_gguf(args.head))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "states.bin"
        layout = Layout("measured", head.shape.target_layers, head.shape.target_width, best=1)
        prompts = chosen_prompts(args.prompts_files, args.prompts)
        categories = capture(args, head.shape, path, layout, prompts)
        show(head, rows, StatesFile(path, layout), categories)
    return 0


def chosen_prompts(paths: Sequence[Path], each: int) -> list[tuple[str, str]]:
    """(category, prompt), `each` of every category, always the same."""
    by_category: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if "turns" in record:
                by_category[record["category"]].append(record["turns"][0])
    chance = random.Random(5)
    return [
        (category, prompt)
        for category, prompts in sorted(by_category.items())
        for prompt in chance.sample(prompts, min(each, len(prompts)))
    ]


def capture(
    args: argparse.Namespace,
    shape: HeadShape,
    path: Path,
    layout: Layout,
    prompts: Sequence[tuple[str, str]],
) -> list[str]:
    """Let the target answer, and capture what it computes; returns the category of each text."""
    asked = Asked(
        args.model, n_ctx=N_CTX, texts=AT_ONCE, threads=args.threads, threads_batch=args.threads,
        drafter="none", store=False, measure=False,
    )  # fmt: skip
    categories = []
    with Session.open(asked) as session, StatesWriter(path, layout) as states:
        session.model.extract(shape.target_layers)
        greedy = SamplingSettings(temperature=0.0, seed=1)
        answers = []
        for category, prompt in prompts:
            tokens = session.prompt_of([{"role": "user", "content": prompt}])
            if len(tokens) + args.tokens <= N_CTX:
                answers.append(session.generate(tokens, greedy, n_predict=args.tokens, label=category))
        for _ in session.together(answers):
            pass
        for answer in answers:
            prompt_ids = answer.request.prompt
            states.append(
                read_states(session.cache, [*prompt_ids, *answer.result.tokens], len(prompt_ids), best=1)
            )
            categories.append(str(answer.label))
    return categories


def show(head: Head, rows: Rows, states: StatesFile, categories: Sequence[str]) -> None:
    """The table."""
    tokens = steps = 0
    lengths = {}
    for category in sorted(set(categories)):
        texts = [i for i, name in enumerate(categories) if name == category]
        batches = Batches(states, texts, rows, seed=0)
        found = measure_chains(head, batches.each(batches.windows), rows.ids)
        tokens, steps = tokens + found.tokens, steps + found.steps
        lengths[category] = found.to_json()
        shares = " ".join(f"{share:.2f}" for share in found.to_json()["by_step"][:5])
        print(f"{category:20} {found.length:6.3f}  {found.steps:6} steps  {shares}")
    print(f"{'all':20} {tokens / max(steps, 1):6.3f}  {steps:6} steps")
    sys.stdout.write(json.dumps({"length": round(tokens / max(steps, 1), 4), "categories": lengths}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
