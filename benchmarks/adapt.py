"""What `--adapt` brings on one kind of prompts: half of them are learned from, the others measured.

The first half is answered as any session with --adapt would, at the given temperature; then whatever is to be
learned is learned. The target answers the second half greedily, and the chains of the head before and after
are counted on these answers, as `head_acceptance.py` does: counts, whatever else the machine does.

    python benchmarks/adapt.py MODEL.gguf HEAD.gguf PROMPTS.jsonl... --category NAME --tokens 160
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from head_acceptance import capture, chosen_prompts

from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import read_gguf
from specx.backends.places import cache_dir
from specx.drafters.train.batches import Batches
from specx.drafters.train.chains import Acceptance, measure_chains
from specx.drafters.train.loaded import read_trained
from specx.drafters.train.states import Layout, StatesFile
from specx.engine.session import Session
from specx.engine.settings import Asked, AskedModel, SamplingSettings

N_CTX = 1536


def main() -> int:
    """Measure, and print a table; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("head", type=Path)
    parser.add_argument("prompts_files", type=Path, nargs="+", help="JSON lines with `turns` and `category`")
    parser.add_argument("--category", help="of the prompts; by default all of the files are of one kind")
    parser.add_argument("--prompts", type=int, default=100, help="at most, in both halves together")
    parser.add_argument("--tokens", type=int, default=160, help="of each answer")
    parser.add_argument("--temp", type=float, default=0.8, help="of the answers that are learned from")
    parser.add_argument("--at-once", type=int, default=8, help="texts that are written together")
    parser.add_argument("-t", "--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    every = chosen_prompts(args.prompts_files, args.prompts)
    prompts = [(kind, prompt) for kind, prompt in every if args.category in (None, kind)]
    half = len(prompts) // 2
    after, seconds, told = learn(args, [prompt for _, prompt in prompts[:half]])
    head, rows = read_trained(read_runnable(args.model), read_gguf(args.head))
    found: dict[str, Acceptance] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "states.bin"
        layout = Layout("measured", head.shape.target_layers, head.shape.target_width, best=1)
        capture(args, head.shape, path, layout, prompts[half:])
        states = StatesFile(path, layout)
        for name, file in (("before", args.head), ("after", after)):
            head, rows = read_trained(read_runnable(args.model), read_gguf(file))
            batches = Batches(states, range(len(states)), rows, seed=0)
            found[name] = measure_chains(head, batches.each(batches.windows), rows.ids)
    for name, each in found.items():
        print(f"{name:8} {each.length:6.3f} tokens a step, {each.steps:6} steps")
    record = {name: each.to_json() for name, each in found.items()}
    gains = {"tokens a step": found["after"].length / found["before"].length - 1}
    shares = {name: float(each.right.sum() / max(each.reached.sum(), 1)) for name, each in found.items()}
    gains["acceptance"] = shares["after"] / max(shares["before"], 1e-9) - 1
    for name, gain in gains.items():
        print(f"{name}: {gain:+.1%}")
    sys.stdout.write(json.dumps({**record, "gains": gains, "seconds": seconds, "told": told}) + "\n")
    return 0


def learn(args: argparse.Namespace, prompts: Sequence[str]) -> tuple[Path, float, list[str]]:
    """Answer the prompts and learn; the head then, seconds of learning, and what was told."""
    told: list[str] = []
    asked = Asked(
        args.model, n_ctx=N_CTX, texts=args.at_once, threads=args.threads, threads_batch=args.threads,
        drafter="model", draft=AskedModel(model=args.head), adapt=True, measure=False,
    )  # fmt: skip
    with Session.open(asked, notice=told.append) as session:
        assert session.draft_models is not None and session.draft_models.adapting is not None
        answers = []
        for number, prompt in enumerate(prompts):
            asking = session.prompt_of([{"role": "user", "content": prompt}])
            sampling = SamplingSettings(temperature=args.temp, seed=number + 1)
            if len(asking) + args.tokens <= N_CTX:
                answers.append(session.generate(asking, sampling, n_predict=args.tokens))
        for _ in session.together(answers):
            pass
        start = time.monotonic()
        session.draft_models.adapting.finish(lambda: time.sleep(0.5))
        seconds = round(time.monotonic() - start, 1)
        assert session.draft_models.candidate is not None
        tokens = sum(len(answer.result.tokens) for answer in answers)
        print(f"{len(answers)} answers of {tokens} tokens, {seconds} s of learning")
        for line in told:
            print(line)
        return session.draft_models.candidate.path, seconds, told


if __name__ == "__main__":
    if cache_dir() is None:
        sys.exit("error: there is no place for what is learned: set SPECX_CACHE to a folder")
    sys.exit(main())
