"""How near steps come to what memory and processor allow.

    python -P benchmarks/roofline.py MODEL [MODEL ...] [--depth 256] [--threads N]

For each model, width and kind of kernels: milliseconds, the bound that reading and that computing set, and
how many times the larger of the two the step takes. One line of JSON for each model comes last.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from specx.engine.report.staircase import probe_staircases
from specx.engine.settings import Asked


def main() -> None:
    """Probe the models and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--depth", type=int, default=256)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    records = []
    for path in options.models:
        found = probe_staircases(Asked(path, threads=options.threads), [options.depth], notice=print)
        line, steps = found.roofline, found.comparison.steps
        [depth] = line.bounds
        print(
            f"{path.stem}, after {depth} tokens, {found.threads.value} threads: "
            f"{found.bandwidth / 1e9:.1f} GB/s, {line.peak / 1e9:.0f} billion operations/s "
            f"with {line.instructions or 'unknown instructions'}"
        )
        print("tokens  reading computing  " + "".join(f"{name:>18}" for name in steps))
        for n, bound in line.bounds[depth].items():
            computing = f"{bound.computing:9.2f}" if bound.computing is not None else f"{'?':>9}"
            cells = "".join(
                f"{by[depth][n]:9.2f} ({found.over(name, depth, n):5.2f})" for name, by in steps.items()
            )
            print(f"{n:6} {bound.reading:8.2f} {computing}   {cells}")
        records.append({"model": path.stem, **found.to_json()})
    for record in records:
        print(json.dumps(record))


if __name__ == "__main__":
    main()
