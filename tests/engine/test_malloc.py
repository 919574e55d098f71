"""Freed memory is used again: counted in page faults of a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from fasttricks.engine import keep_freed_memory

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

SCRIPT = """
import resource, sys
import torch
from fasttricks import keep_freed_memory

for word in sys.argv[1:]:
    assert keep_freed_memory(word == "keep")

def use():
    # Two sizes in turn, as in a step; above what glibc keeps by itself.
    for megabytes in (96, 48):
        torch.ones(megabytes * 2**18).sum()

for _ in range(3):  # the heap takes its shape
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*words):
    command = [sys.executable, "-c", SCRIPT, *words]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@needs_glibc
def test_freed_memory_is_used_again_without_page_faults():
    usual, kept = page_faults(), page_faults("keep")
    # Pages of 4 KiB, or of up to 2 MiB where the system joins them.
    assert usual >= 8 * 144 / 2
    assert kept < usual / 4


@needs_glibc
def test_it_can_be_taken_back():
    assert page_faults("keep", "give") > 4 * page_faults("keep")


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
