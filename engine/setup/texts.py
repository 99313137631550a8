"""How many texts there is room for at once, where nobody asked for a number."""

from __future__ import annotations

from dataclasses import replace

from specx.backends.gguf.file import GGUFInfo
from specx.backends.llama.libllama import system_info
from specx.backends.llama.memory import repacked_types
from specx.backends.settings import Load
from specx.engine.settings import Asked
from specx.engine.setup.choice import ASKED, Choice
from specx.engine.setup.fit import Room, most_texts, read_room

__all__ = ["choose_texts"]

MOST = 16
DEFAULT = "the default"


def choose_texts(info: GGUFInfo, asked: Asked, load: Load, room: Room | None = None) -> Choice[int]:
    """How many texts of its context the model is loaded for.

    Args:
        info: the header of the model.
        asked: what was said.
        load: how it is to be loaded for one text.
        room: what memory there is; by default that of this machine now.
    """
    if asked.texts is not None:
        return Choice(asked.texts, ASKED if asked.texts > 1 else DEFAULT)
    room = room or read_room()
    most = most_texts(info, asked, replace(load, texts=1), room, MOST, repacked_types(system_info()))
    return Choice(
        most,
        f"each with a context of {load.n_ctx}; memory for no more" if most < MOST else "the most that pay",
    )
