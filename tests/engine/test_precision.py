"""Precision: which dtype computes, and that an overflow holds back every optimizer."""

from __future__ import annotations

import pytest
import torch

from fasttricks.engine import Precision


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_forward_pass_computes_in_the_named_dtype(name, dtype):
    with Precision(name).forward_context():
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype


def test_auto_takes_bf16_where_the_cpu_has_it(monkeypatch):
    for flag, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("fasttricks._hardware.CPU_MULTIPLIES_BF16", flag)
        assert Precision("auto").name == expected


def test_gradients_are_those_of_the_loss():
    weight = torch.nn.Parameter(torch.tensor(3.0))
    Precision("fp32").backward(weight**2)
    assert weight.grad == 6


def scaled_precision():
    """The fp16 path on the CPU: torch's own scaler, which runs there as well."""
    precision = Precision("fp32")
    precision._scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    return precision


def two_optimizers():
    weights = [torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2)]
    return weights, [torch.optim.SGD([weight], lr=0.5) for weight in weights]


def test_a_scaled_step_equals_the_plain_one():
    weights, optimizers = two_optimizers()
    precision = scaled_precision()
    precision.backward((weights[0] ** 2).sum() + weights[1].sum())
    assert precision.step(optimizers)
    assert torch.equal(weights[0], torch.tensor([0.0, 0.0]))
    assert torch.equal(weights[1], torch.tensor([0.5, 1.5]))
    assert precision.skipped_steps == 0


def test_an_overflow_in_one_optimizer_holds_back_both_and_lowers_the_scale():
    weights, optimizers = two_optimizers()
    precision = scaled_precision()
    precision.backward(weights[0].sum() + weights[1].sum())
    weights[1].grad[0] = torch.inf
    assert not precision.step(optimizers)
    for weight in weights:
        assert torch.equal(weight, torch.tensor([1.0, 2.0]))
    assert precision.skipped_steps == 1
    assert precision.state_dict()["scaler"]["scale"] == 4.0


def test_state_survives_a_round_trip():
    precision, other = scaled_precision(), scaled_precision()
    weights, optimizers = two_optimizers()
    precision.backward(weights[0].sum() * torch.inf + weights[1].sum())
    precision.step(optimizers)
    other.load_state_dict(precision.state_dict())
    assert other.state_dict() == precision.state_dict()


def test_fp16_is_refused_where_gradients_cannot_be_scaled():
    with pytest.raises(ValueError, match="precision must be 'bf16' or 'fp32' on device 'cpu'"):
        Precision("fp16")


def test_an_error_of_the_update_leaves_the_scaler_ready_for_the_next():
    class Fails(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("CUDA out of memory")

    weights, optimizers = two_optimizers()
    precision = scaled_precision()
    precision.backward(weights[0].sum() + weights[1].sum())
    with pytest.raises(RuntimeError, match="out of memory"):
        precision.step([optimizers[0], Fails([weights[1]], lr=0.5)])
    for weight in weights:
        weight.grad = None
    precision.backward(weights[0].sum() + weights[1].sum())
    assert precision.step(optimizers)
    assert torch.equal(weights[1], torch.tensor([0.5, 1.5]))
