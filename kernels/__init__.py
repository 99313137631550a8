"""Native code with a NumPy reference beside each function.

The tests hold every native function against its reference. The native module is a normal part of the
package: an installation without it is broken, and says so. So does one whose native module was built from
another version, as it is where a checkout that is installed to be edited was updated.
"""

import hashlib
from pathlib import Path

from specx.kernels import _native

__all__ = ["check"]


def check(built: str | None, interface: Path) -> None:
    """Refuse a native module of another version.

    Args:
        built: what the module was built to, `_native.INTERFACE`; None if it does not say.
        interface: the file that says what it is used as. Where there is none, nothing was updated.

    Raises:
        ImportError: they differ.
    """
    try:
        expected = hashlib.sha256(interface.read_bytes()).hexdigest()
    except OSError:
        return
    if built != expected:
        raise ImportError("it was built from another version", name=_native.__name__)


check(getattr(_native, "INTERFACE", None), Path(__file__).with_name("_native.pyi"))
