"""Replay recorded outputs through the free drafters: tokens per target step, without running a model.

    python benchmarks/replay.py TRACES_DIR [--warm] [--corpus] [--prompt-rows] [--sources ...] [--fit]

A width is the tokens of one target call: the last committed one and `width - 1` drafted nodes. By default
every prompt starts with empty caches and the shipped prior; `--warm` keeps text, rows and calibration from
prompt to prompt, as a user's store does. With `--corpus` each prompt is searched in an index of the answers
to the other prompts of its category, as after `specx cache add`. The rows of rejected nodes are not in a
trace, so the recycled part comes out slightly low. The last line is JSON.

`--fit` prints log odds for drafters/calibration/free.py instead.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specx.drafters.calibration.free import CELLS, SUFFIX_CELLS, Calibration
from specx.drafters.free import SHARED_PROMPT
from specx.kernels._native import (
    RECYCLE_SHAPE,
    SUFFIX_SHAPE,
    Corpus,
    FreeTrie,
    RecycleTable,
    SuffixAutomaton,
    suffix_array,
)

WIDTHS = (2, 4, 8, 16)
RIDGE = 1.0
NO_TOKENS = np.empty(0, np.int32)
SHUFFLE_SEED = 0  # order of the prompts in a warm replay


@dataclass(frozen=True)
class Trace:
    """One recorded generation, see record_traces.py."""

    category: str
    prompt: NDArray[np.int32]
    output: NDArray[np.int32]
    ids: NDArray[np.int32]
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class Free:
    """What proposes drafts: a trie, the recycled rows that it looks into, and what was written before."""

    table: RecycleTable
    trie: FreeTrie
    written: SuffixAutomaton


@dataclass(frozen=True)
class Setup:
    """What the drafters may use."""

    sources: tuple[str, ...]
    warm: bool
    prompt_rows: bool
    corpus: bool = False

    def free(
        self,
        vocab_size: int,
        calibration: Calibration,
        corpus: Corpus | None = None,
        before: Free | None = None,
    ) -> Free:
        """A new trie on a calibration, which knows nothing, or goes on from what another one has seen."""
        suffix, recycle = ("suffix" in self.sources, "recycle" in self.sources)
        table = before.table if before else RecycleTable(vocab_size)
        written = before.written if before else SuffixAutomaton(apart=True)
        counts, prior = calibration.counts, calibration.prior
        return Free(table, FreeTrie(table, counts, prior, suffix, recycle, written, corpus), written)

    def corpus_for(self, traces: list[Trace], i: int) -> Corpus | None:
        """What the prompt of a trace is searched in."""
        if not self.corpus:
            return None
        others = [t.output for k, t in enumerate(traces) if k != i and t.category == traces[i].category]
        tokens = np.concatenate([np.append(output, np.int32(-1)) for output in others] or [NO_TOKENS])
        return Corpus(tokens, suffix_array(tokens))


@dataclass
class Tally:
    steps: int = 0
    tokens: int = 0
    predicted: float = 0.0
    accepted: int = 0

    def add(self, other: Tally) -> None:
        self.steps += other.steps
        self.tokens += other.tokens
        self.predicted += other.predicted
        self.accepted += other.accepted

    @property
    def rate(self) -> float:
        """Tokens per target step."""
        return self.tokens / max(self.steps, 1)


def load(folder: Path) -> list[Trace]:
    traces = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as z:
            traces.append(Trace(str(z["category"]), z["prompt"], z["output"], z["ids"], z["logits"]))
    if not traces:
        raise SystemExit(f"error: no traces in {folder}\nhint: make some with benchmarks/record_traces.py")
    return traces


def learn(table: RecycleTable, trace: Trace, start: int, stop: int) -> None:
    """Recycle the rows of positions start to stop of prompt + output."""
    tokens = np.concatenate(([-1], trace.prompt, trace.output)).astype(np.int32)
    table.update_top(
        tokens[start:stop], tokens[start + 1 : stop + 1], trace.ids[start:stop], trace.logits[start:stop]
    )


def accepted_nodes(tokens: list[int], parents: list[int], output: list[int]) -> int:
    """Length of the path of the tree that `output` follows."""
    below = {(parent, token): node for node, (parent, token) in enumerate(zip(parents, tokens, strict=True))}
    node, n = -1, 0
    while n < len(output) and (node, output[n]) in below:
        node, n = below[node, output[n]], n + 1
    return n


def replay(free: Free, trace: Trace, width: int, leaves: int, prompt_rows: bool) -> Tally:
    """Decode one trace with a fixed width."""
    trie, prompt, output = free.trie, len(trace.prompt), trace.output.tolist()
    trie.begin(trace.prompt, SHARED_PROMPT)
    learn(free.table, trace, 0 if prompt_rows else prompt - 1, prompt)
    trie.observe(output[:1])  # the prompt gives the first token
    tally, at = Tally(), 1
    while at < len(output):
        draft = trie.grow(width - 1, leaves)
        accepted = accepted_nodes(draft.tokens.tolist(), draft.parents.tolist(), output[at:])
        emitted = min(accepted + 1, len(output) - at)
        trie.observe(output[at : at + emitted])
        learn(free.table, trace, prompt + at - 1, prompt + at - 1 + emitted)
        tally.add(Tally(1, emitted, float(draft.probs.sum()), accepted))
        at += emitted
    return tally


def replay_all(traces: list[Trace], setup: Setup, width: int, leaves: int) -> dict[str, Tally]:
    """Tallies by category, and of "all"."""
    vocab_size = 1 + max(int(max(t.ids.max(), t.prompt.max(), t.output.max())) for t in traces)
    tallies: dict[str, Tally] = defaultdict(Tally)
    calibration = Calibration()
    free = setup.free(vocab_size, calibration)
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(traces)) if setup.warm else range(len(traces))
    for i in order:
        if not setup.warm:
            calibration = Calibration()
        if not setup.warm or setup.corpus:
            before = free if setup.warm else None
            free = setup.free(vocab_size, calibration, setup.corpus_for(traces, i), before)
        tally = replay(free, traces[i], width, leaves, setup.prompt_rows)
        tallies[traces[i].category].add(tally)
        tallies["all"].add(tally)
    return tallies


def report(traces: list[Trace], setup: Setup) -> None:
    """Print tokens per step by category, as trees and as chains."""
    trees = [replay_all(traces, setup, width, width) for width in WIDTHS]
    chains = [replay_all(traces, setup, width, 1) for width in WIDTHS]
    print(f"{'tokens per step at width':<26}" + "".join(f"{width:>8}" for width in WIDTHS))
    for category in sorted(trees[0], key=lambda name: (name == "all", name)):
        print(f"{category:<26}" + "".join(f"{tree[category].rate:8.2f}" for tree in trees))
    print(f"{'all, chains only':<26}" + "".join(f"{chain['all'].rate:8.2f}" for chain in chains))
    ratios = [tree["all"].predicted / max(tree["all"].accepted, 1) for tree in trees]
    print(f"{'predicted / accepted':<26}" + "".join(f"{ratio:8.2f}" for ratio in ratios))
    rates = {
        "tree": [round(tree["all"].rate, 3) for tree in trees],
        "chain": [round(chain["all"].rate, 3) for chain in chains],
    }
    print(json.dumps({"widths": WIDTHS, "prompts": len(traces), **rates}))


def fit_axes(counts: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Ridge logistic regression of hits on one indicator for every value of every axis: Newton's method."""
    trials, hits = counts[:, 1], counts[:, 0]
    where = np.indices(shape).reshape(len(shape), -1).T[trials > 0]
    starts = np.cumsum([1, *shape])
    design = np.zeros((len(where), starts[-1]))
    design[:, 0] = 1
    for axis, start in enumerate(starts[:-1]):
        design[np.arange(len(where)), start + where[:, axis]] = 1
    hits, trials = hits[trials > 0], trials[trials > 0]
    weights, ridge = np.zeros(starts[-1]), np.full(starts[-1], RIDGE)
    ridge[0] = 1e-6  # the constant is free
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ weights))
        hessian = (design * (trials * p * (1 - p))[:, None]).T @ design + np.diag(ridge)
        weights += np.linalg.solve(hessian, design.T @ (hits - trials * p) - ridge * weights)
    return weights


def fit(traces: list[Trace], sources: tuple[str, ...]) -> None:
    """Print the log odds that describe replays of these traces: cold and warm, without and with a corpus."""
    counts = np.zeros((CELLS, 2))
    vocab_size = 1 + max(int(max(t.ids.max(), t.prompt.max(), t.output.max())) for t in traces)
    for warm, corpus in ((False, False), (True, False), (False, True), (True, True)):
        setup = Setup(sources, warm, prompt_rows=False, corpus=corpus)
        free = setup.free(vocab_size, Calibration())
        for i in np.random.default_rng(SHUFFLE_SEED).permutation(len(traces)):
            calibration = Calibration()  # of one trace: too short to forget much
            fresh = setup.free(vocab_size, calibration, setup.corpus_for(traces, i), free if warm else None)
            replay(fresh, traces[i], 2, 1, prompt_rows=False)
            counts += calibration.counts
            free = fresh
    for name, block, shape in (
        ("suffix", counts[:SUFFIX_CELLS], SUFFIX_SHAPE),
        ("recycled", counts[SUFFIX_CELLS:], RECYCLE_SHAPE),
    ):
        weights = fit_axes(block, shape)
        ends = np.cumsum([1, *shape])
        print(f"{name}: {weights[0]:.2f}")
        for start, end in pairwise(ends):
            print("   ", ", ".join(f"{w:.2f}" for w in weights[start:end]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("traces", type=Path)
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--corpus", action="store_true", help="search the answers to similar prompts, too")
    parser.add_argument("--prompt-rows", action="store_true", help="recycle the rows of the prompt, too")
    parser.add_argument("--sources", nargs="+", default=["suffix", "recycle"], choices=["suffix", "recycle"])
    parser.add_argument("--fit", action="store_true")
    args = parser.parse_args()
    traces = load(args.traces)
    if args.fit:
        fit(traces, tuple(args.sources))
    else:
        report(traces, Setup(tuple(args.sources), args.warm, args.prompt_rows, args.corpus))


if __name__ == "__main__":
    main()
