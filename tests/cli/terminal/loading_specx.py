"""`specx` whose models are loaded for a minute. Run as a script, with the arguments of the command."""

from __future__ import annotations

import time

STEPS = 600


def load(_asked, *, progress, **_given):
    for step in range(STEPS):
        progress(step / STEPS)
        time.sleep(0.1)
    raise SystemExit("it was loaded")


def main():
    from specx.cli.app import main
    from specx.engine.session import Session

    Session.open = load
    main()


if __name__ == "__main__":
    main()
