"""`specx` with a model that needs no file. Run as a script it is the command."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from specx.backends.scripted import ScriptedModel
from specx.backends.store import Store
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
STEPS = {"0": {str(n): 10.0 + n / 4 for n in range(1, 65)}}


class Slowed(ScriptedModel):
    """A model whose steps take some time."""

    def forward(self, trees, want=None):
        time.sleep(float(os.environ.get("SCRIPTED_DELAY", "0")))
        return super().forward(trees) if want is None else super().forward(trees, want)


def session_of(asked, **options):
    """A session on a scripted model that writes words."""
    texts = asked.texts or 8
    model = Slowed(300, order=3, sharpness=1.0, n_ctx=asked.n_ctx or 4096, max_texts=texts, **options)
    learned = Learned(Store(None), model_key="model", cost_key="cost")
    asked = replace(asked, store=False)
    session = Session(model, asked, learned, name=asked.model.stem, chat_template=TEMPLATE)
    session.staircase.load_json(STEPS)
    return session


def open_session(asked, *, progress, notice, setup=None):
    """In the place of `Session.open`."""
    del progress, notice, setup
    print("loading", file=sys.stderr, flush=True)
    return session_of(asked)


def about(path: Path):
    """In the place of what is read from a model file."""
    from specx.cli.batch.command import About

    return About(f"{path.stem} (scripted)", chats=True, trained=4096)


def install():
    """From now on there is no other model in this process."""
    from specx.cli.batch import command

    Session.open = open_session
    command.about = about


def main():
    install()
    from specx.cli.app import main

    main()


if __name__ == "__main__":
    main()
