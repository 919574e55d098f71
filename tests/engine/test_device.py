"""The choice of a device."""

from __future__ import annotations

import pytest
import torch

from fasttricks.engine import choose_device


def test_the_named_device_is_taken():
    assert choose_device("cpu") == "cpu"


def test_auto_takes_the_fastest_there_is(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"


def test_a_missing_or_unknown_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="got device='cuda', which torch .* does not find here"):
        choose_device("cuda")
    with pytest.raises(ValueError, match="device must be one of .* got device='tpu'"):
        choose_device("tpu")
