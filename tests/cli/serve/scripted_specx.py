"""`specx` whose models are scripted. Run as a script, with the arguments of the command.

SCRIPTED_MS is how long a step takes, SCRIPTED_LOADING how many seconds loading does.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path


def main():
    spec = importlib.util.spec_from_file_location("serve_conftest", Path(__file__).with_name("conftest.py"))
    scripted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scripted)
    from specx.cli.app import main
    from specx.engine.session import Session

    def open_session(asked, *, progress, notice, setup=None):
        time.sleep(float(os.environ.get("SCRIPTED_LOADING", "0")))
        session = scripted.session_of(
            texts=asked.texts or 4, slow_ms=float(os.environ.get("SCRIPTED_MS", "0"))
        )
        close = session.close

        def closing(*, free=True):
            close(free=free)
            print("closed", file=sys.stderr, flush=True)

        session.close = closing
        return session

    Session.open = open_session
    main()


if __name__ == "__main__":
    main()
