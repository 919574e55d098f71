"""The guard of conftest.py is seen to fail for each trace that a test could leave."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch


def test_the_guard_passes_a_block_that_cleans_up(guard):
    with guard():
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()


def test_the_guard_sees_an_environment_variable(guard, monkeypatch):
    with pytest.raises(AssertionError, match="changed the environment variables"), guard():
        monkeypatch.setenv("FASTTRICKS_LEAK", "1")


def test_the_guard_sees_a_thread(guard):
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    try:
        with pytest.raises(AssertionError, match="left threads running"), guard():
            thread.start()
    finally:
        release.set()
        thread.join()


def test_the_guard_sees_a_torch_flag(guard):
    try:
        with pytest.raises(AssertionError, match="changed the torch flags"), guard():
            torch.set_default_dtype(torch.float64)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_guard_sees_a_file_in_the_root(guard):
    stray = Path(__file__).parents[1] / "stray-file-of-a-test"
    try:
        with pytest.raises(AssertionError, match="changed the files in the root"), guard():
            stray.touch()
    finally:
        stray.unlink()


def test_the_guard_sees_a_changed_working_directory(guard, tmp_path):
    home = os.getcwd()
    try:
        with pytest.raises(AssertionError, match="changed the working directory"), guard():
            os.chdir(tmp_path)
    finally:
        os.chdir(home)


def test_the_cache_folder_lies_outside_the_home_folder():
    assert not Path(os.environ["FASTTRICKS_CACHE"]).is_relative_to(Path.home())
