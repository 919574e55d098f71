"""Reads the pickles that CIFAR-10 comes in without running anything that they ask for.

A pickle may name any function, and loading it calls that. These are read with an unpickler that
knows nothing but a holder of values and ``str.encode``; arrays are rebuilt from their parts after.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fasttricks.data._errors import DataError, reason_of


class _Holder:
    """Takes the place of everything a batch may name: keeps what it is given, does nothing."""

    __slots__ = ("args", "state")

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    """Unpickles plain values; an array arrives as a ``_Holder``, any other name is refused."""

    # str.encode is what Python 3 needs of _codecs.encode to write bytes that Python 2 can read
    _stand_ins: Mapping[tuple[str, str], Callable[..., Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _Holder,
        ("numpy._core.multiarray", "_reconstruct"): _Holder,
        ("numpy", "ndarray"): _Holder,
        ("numpy", "dtype"): _Holder,
        ("_codecs", "encode"): str.encode,
    }

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in self._stand_ins:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
        return self._stand_ins[module, name]


def load_batch(content: bytes, where: str) -> dict[str, Any]:
    """The dict in a batch, its keys as text; an array in it is for ``array_from``."""
    try:
        entries = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle fails in whatever way its bytes happen to say
        raise DataError(
            f"{where} is not a batch of CIFAR-10 ({reason_of(error)}); nothing in it was run"
        ) from None
    if not isinstance(entries, dict):
        raise DataError(f"{where} must hold a dict, got {type(entries).__name__}")
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: value
        for key, value in entries.items()
        if isinstance(key, (bytes, str))
    }


def array_from(holder: object, where: str) -> npt.NDArray[np.uint8]:
    """The uint8 array of numpy's pickled state (version, shape, dtype, Fortran order, bytes)."""
    try:
        _, shape, dtype, fortran_order, data = holder.state  # type: ignore[attr-defined]
        if dtype.args[0] not in ("u1", b"u1"):
            raise TypeError(f"dtype {dtype.args[0]!r}")
        return np.frombuffer(data, dtype=np.uint8).reshape(
            shape, order="F" if fortran_order else "C"
        )
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        raise DataError(
            f"the images of {where} must be a uint8 array of shape [N, 3072], "
            f"got {reason_of(error)}"
        ) from None
