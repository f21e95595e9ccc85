"""How the views' inner loops are compiled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])
#: What compiled functions are made of, whichever file they stand in: they call each other, and hold others' constants.
_SOURCES = ("compiled.py", "draws.py", "fused.py", "rand_augment.py")
STAMP = hashlib.sha256(b"".join(Path(__file__).with_name(name).read_bytes() for name in _SOURCES)).hexdigest()


def compiled(function: _Function) -> _Function:
    """Compile at the first call; what was compiled is kept on disk, where there is a place for it.

    numba takes what it kept unless the function's own file has changed; here it is unless any of them has.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}
    try:
        made: Any = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return cast(_Function, numba.njit(**options)(function))
    with suppress(AttributeError):  # of a numba that keeps it elsewhere
        made._cache._cache_file._source_stamp = STAMP
    return cast(_Function, made)
