"""Settings of the whole suite, and a guard that fails a test that leaves traces behind."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import hypothesis
import pytest
import torch

from fasttricks.models._kernels import kernels

ROOT = Path(__file__).parents[1]
# pytest sets the first for each phase of a test, scikit-learn the next two when it is imported,
# torch two when it first compiles, and older releases the last with the first work on a GPU.
FOREIGN_VARIABLES = {
    "PYTEST_CURRENT_TEST",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "CUDA_MODULE_LOADING",
}
# torch up to at least 2.6 keeps a reader for the processes that compile.
FOREIGN_THREAD = "(_read_thread)"
# A thread that was told to stop may need a moment to do so.
THREAD_GRACE_SECONDS = 1.0

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)


def pytest_configure(config: pytest.Config) -> None:
    scratch = tempfile.TemporaryDirectory(prefix="fasttricks-tests-")
    config.add_cleanup(scratch.cleanup)
    os.environ["MPLBACKEND"] = "Agg"
    with warnings.catch_warnings():
        # Told at once, and not as an error of whichever test comes first to what is compiled.
        warnings.simplefilter("default")
        kernels()
    os.environ["FASTTRICKS_CACHE"] = str(Path(scratch.name) / "cache")
    hypothesis.configuration.set_hypothesis_home_dir(Path(scratch.name) / "hypothesis")
    hypothesis.settings.load_profile("ci")
    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    if item.get_closest_marker("native") and kernels() is None:
        pytest.skip("needs a compiler, and FASTTRICKS_NATIVE other than 0")


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}


def root_entries() -> set[str]:
    """Names in the repository root, but for the caches of tools."""
    names = {entry.name for entry in ROOT.iterdir()}
    return {name for name in names if not name.startswith(".") and name != "__pycache__"}


def new_threads(before: set[threading.Thread]) -> set[threading.Thread]:
    new = {thread for thread in threading.enumerate() if thread not in before}
    return {thread for thread in new if not thread.name.endswith(FOREIGN_THREAD)}


def torch_flags() -> dict[str, object]:
    return {
        "default_dtype": torch.get_default_dtype(),
        "grad_enabled": torch.is_grad_enabled(),
        "num_threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
    }


@contextmanager
def no_traces() -> Iterator[None]:
    """Fail if the block leaves a thread running, or a variable, flag or file changed."""
    before = environment(), torch_flags(), root_entries(), os.getcwd()
    threads = set(threading.enumerate())
    yield
    deadline = time.monotonic() + THREAD_GRACE_SECONDS
    while new_threads(threads) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not new_threads(threads), "the test left threads running"
    after = environment(), torch_flags(), root_entries(), os.getcwd()
    kinds = "environment variables", "torch flags", "files in the root", "working directory"
    for kind, old, new in zip(kinds, before, after, strict=True):
        assert new == old, f"the test changed the {kind}"


@pytest.fixture(autouse=True)
def leave_no_traces() -> Iterator[None]:
    torch.manual_seed(0)
    with no_traces():
        yield


@pytest.fixture
def guard() -> Callable[[], AbstractContextManager[None]]:
    """The guard itself, for the tests that see it fail."""
    return no_traces
