"""C++ of ours, compiled by the machine's GCC, where torch's own operations are slow on a CPU.

Whoever has no compiler gets the same by torch's operations, more slowly. Nothing is kept: the
library is made again in every process that needs it, in a second or two, for the very processor
that it runs on, and its files are gone before it is used.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from ctypes import CDLL
from functools import lru_cache
from pathlib import Path

_COMPILE = ("-std=gnu++17", "-O3", "-march=native", "-fopenmp", "-fno-exceptions", "-fPIC", "-c")
# Without OpenMP's library: the one that torch has loaded is found, and its threads are used. A
# second one would have threads of its own, and the two would wait for each other's cores.
_LINK = ("-shared", "-nostdlib")

# The names of the files that this process has compiled and loaded, for the records of its runs.
LOADED: list[str] = []


@lru_cache
def load(source: Path) -> CDLL | None:
    """Compile C++ and load it into this process.

    Args:
        source: A file that includes nothing but the standard library's headers, and is linked with
            nothing but C's library and OpenMP's.

    Returns:
        The library; or None on other systems than Linux, without a compiler (``$CXX``, or else
        ``g++``) or where ``$FASTTRICKS_NATIVE`` is 0, and with a warning where it fails, as with
        another compiler than GCC.
    """
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    if sys.platform != "linux" or os.environ.get("FASTTRICKS_NATIVE") == "0":
        return None
    if shutil.which(compiler[0]) is None:
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="fasttricks-") as folder:
            compiled, library = Path(folder, "object.o"), Path(folder, "library.so")
            for command in (
                [*compiler, *_COMPILE, str(source), "-o", str(compiled)],
                [*compiler, *_LINK, str(compiled), "-o", str(library)],
            ):
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
            loaded = CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        warnings.warn(
            f"{shlex.join(compiler)} could not compile {source.name}, and torch's operations do "
            f"the same more slowly; FASTTRICKS_NATIVE=0 in the environment does without from the "
            f"start: {lines[-1] if lines else error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    LOADED.append(source.name)
    return loaded
