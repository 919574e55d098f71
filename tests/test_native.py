"""C++ of ours: compiled, loaded, and done without where that cannot be."""

from __future__ import annotations

import ctypes
import shutil
import sys
import warnings
from pathlib import Path

import pytest

from fasttricks import _native

SOURCE = """
#include <cstdint>
extern "C" int64_t total(int64_t n) {
  int64_t sum = 0;
#pragma omp parallel for reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += i;
  return sum;
}
"""
needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="no GCC"
)


def loaded(name):
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if name in line}


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("FASTTRICKS_NATIVE", raising=False)
    monkeypatch.setattr(_native, "LOADED", set())
    path = tmp_path / "total.cpp"  # another folder in every test, and so another library
    path.write_text(SOURCE)
    return path


@needs_compiler
def test_a_file_is_compiled_with_the_threads_of_torch_and_leaves_nothing(
    source, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = loaded("gomp")
    library = _native.load(source)
    library.total.restype = ctypes.c_int64
    assert library.total(ctypes.c_int64(1000)) == 499500
    assert list(tmp_path.iterdir()) == [source]
    assert _native.load(source) is library
    assert list(_native.LOADED) == [source.name]
    assert loaded("gomp") == before


@needs_compiler
@pytest.mark.parametrize("command", ["g++ -O1", " g++", " "])
def test_the_compiler_can_be_named_with_arguments(source, command, monkeypatch):
    monkeypatch.setenv("CXX", command)
    assert _native.load(source) is not None


@pytest.mark.parametrize(
    ("name", "value"), [("CXX", "no-such-compiler"), ("FASTTRICKS_NATIVE", "0")]
)
def test_without_a_compiler_or_by_choice_there_is_none(source, name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _native.load(source) is None


BROKEN = {
    "source": ("int x = ;", "g++", "error: expected"),
    "symbol": ('extern "C" void no_such(); extern "C" void f() { no_such(); }', "g++", "no_such"),
    "compiler": (SOURCE, "false", "non-zero exit status"),
    "quote": (SOURCE, "g++ '", "No closing quotation"),
}


@needs_compiler
@pytest.mark.parametrize("broken", BROKEN)
def test_what_cannot_be_compiled_is_told_with_its_cause(source, broken, monkeypatch):
    text, compiler, cause = BROKEN[broken]
    source.write_text(text)
    monkeypatch.setenv("CXX", compiler)
    told = rf"total\.cpp could not be compiled.*FASTTRICKS_NATIVE=0.*{cause}"
    with pytest.warns(RuntimeWarning, match=told):
        assert _native.load(source) is None
    monkeypatch.setattr("subprocess.run", pytest.fail)  # it is not tried again
    with pytest.warns(RuntimeWarning, match=told):
        assert _native.load(source) is None
    assert not _native.LOADED
