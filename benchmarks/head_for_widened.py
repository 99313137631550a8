"""A head that a widened target can be drafted with: the same, with an embedding of its own.

A trained head reads its target's embedding. That of a model that `widen_gguf.py` has padded has other rows,
while its hidden states are cut to those that the head knows; so the head brings the small model's embedding.

    python benchmarks/head_for_widened.py SMALL.gguf HEAD.gguf OUT.gguf
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.head_target import HEAD_TRAINED
from specx.backends.gguf.heads import read_head
from specx.drafters.train.export import write_head
from specx.drafters.train.loaded import read_trained


def main() -> int:
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("small", type=Path, help="the model that the head was trained for")
    parser.add_argument("head", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", default="Q8_0", help="of the embedding: rows are looked up, not multiplied")
    args = parser.parse_args()
    target, made = read_runnable(args.small), read_head(args.head).info
    head, rows = read_trained(target, made)
    weights = {name: parameter.detach().numpy() for name, parameter in head.named_parameters()}
    told = json.loads(str(made.metadata.get(HEAD_TRAINED, "{}")))
    write_head(args.out, weights, head.shape, rows.ids, target, trained=told, embedding=args.type)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
