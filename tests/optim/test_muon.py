"""Muon: its orthogonalisation, its update against two independent references, its batching."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from muon_reference import ReferenceMuon

from fasttricks.optim import Muon, orthogonalize


def random_matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_gradient(value, seed=0):
    parameter = torch.nn.Parameter(value.clone())
    parameter.grad = random_matrix(*value.shape, seed=seed)
    return parameter


@given(m=st.integers(1, 24), k=st.integers(1, 24), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_orthogonalize_brings_singular_values_near_one(m, k, seed):
    # Five steps lift everything above about 1/300 of the norm; smaller values may stay behind.
    matrix = random_matrix(m, k, seed=seed).double()
    before = torch.linalg.svdvals(matrix / matrix.norm())
    after = torch.linalg.svdvals(orthogonalize(matrix, dtype=torch.float64))
    assert after.max() < 1.25
    assert (after[before > 0.01] > 0.65).all()


def test_orthogonalize_keeps_the_singular_vectors():
    matrix = random_matrix(12, 30).double()
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    middle = u.T @ orthogonalize(matrix, dtype=torch.float64) @ v.T
    torch.testing.assert_close(middle, torch.diag(middle.diag()), atol=1e-10, rtol=0)


def test_orthogonalize_of_a_batch_is_that_of_each_matrix_and_of_its_transpose():
    batch = random_matrix(3, 7, 11)
    together = orthogonalize(batch, dtype=torch.float64)
    for matrix, result in zip(batch, together, strict=True):
        torch.testing.assert_close(orthogonalize(matrix, dtype=torch.float64), result)
        torch.testing.assert_close(orthogonalize(matrix.T, dtype=torch.float64), result.T)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_orthogonalize_computes_in_bf16_only_where_it_is_native(monkeypatch, native, dtype):
    monkeypatch.setattr("fasttricks.optim._muon.multiplies_bf16", lambda device: native)
    assert orthogonalize(random_matrix(3, 4)).dtype == dtype
    assert orthogonalize(random_matrix(3, 4), dtype=torch.float64).dtype == torch.float64


def test_orthogonalize_compiles_in_one_graph():
    matrix = random_matrix(3, 4)
    compiled = torch.compile(orthogonalize, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(matrix), orthogonalize(matrix))


def test_orthogonalize_leaves_zero_at_zero():
    assert not orthogonalize(torch.zeros(3, 4)).any()


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_updates_equal_the_plain_reference(momentum):
    weight = random_matrix(16, 40)
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = Muon(
        [parameter], lr=0.1, momentum=momentum, ns_steps=3, adjust_lr="none", normalize_weights=True
    )
    reference = ReferenceMuon(weight.numpy(), momentum=momentum, steps=3)
    for step in range(20):
        parameter.grad = random_matrix(16, 40, seed=step + 1)
        optimizer.step()
        reference.step(parameter.grad.double().numpy(), lr=0.1)
    # The library iterates in bfloat16 (8 bits), so each of the 20 updates of size 0.1 / sqrt(40) an
    # entry may be off by about 1 %.
    expected = torch.from_numpy(reference.weight).float()
    assert (parameter - expected).norm() < 0.01 * expected.norm()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with 2.9")
@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_matrices_move_as_under_torchs_muon(shape, adjust):
    ours, theirs = (torch.nn.Parameter(random_matrix(*shape)) for _ in range(2))
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    optimizers = (
        Muon([ours], adjust_lr=adjust, **options),
        torch.optim.Muon([theirs], adjust_lr_fn=adjust, **options),
    )
    start = ours.detach().clone()
    for step in range(10):
        ours.grad = random_matrix(*shape, seed=step + 1)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert (ours - theirs).norm() < 0.01 * (theirs - start).norm()


def test_a_convolution_moves_as_its_flattened_matrix():
    kernel = random_matrix(8, 3, 3, 3)
    convolution, matrix = with_gradient(kernel), with_gradient(kernel.flatten(1))
    matrix.grad = convolution.grad.flatten(1)
    for parameter in (convolution, matrix):
        Muon([parameter], lr=0.1).step()
    torch.testing.assert_close(convolution.flatten(1), matrix, rtol=0, atol=0)


def test_channels_last_changes_nothing():
    kernel = random_matrix(8, 4, 3, 3)
    plain, last = with_gradient(kernel), with_gradient(kernel)
    last.data = last.data.to(memory_format=torch.channels_last)
    for parameter in (plain, last):
        Muon([parameter], lr=0.1, normalize_weights=True).step()
    torch.testing.assert_close(plain, last, rtol=0, atol=1e-6)  # norms sum in another order


def test_layers_of_one_shape_move_as_each_alone():
    together = [with_gradient(random_matrix(8, 12, seed=s), seed=s + 10) for s in range(3)]
    alone = copy.deepcopy(together)
    for parameter, original in zip(alone, together, strict=True):
        parameter.grad = original.grad.clone()
    Muon(together, lr=0.1).step()
    for parameter in alone:
        Muon([parameter], lr=0.1).step()
    for one, other in zip(together, alone, strict=True):
        # bfloat16 sums of a batched and a single product may differ in their last bit.
        assert (one - other).abs().max() < 0.1 * 2**-7


def test_normalize_weights_sets_the_norm_to_the_root_of_the_rows():
    parameter = with_gradient(5 * random_matrix(9, 4))
    Muon([parameter], lr=0.0, normalize_weights=True).step()
    assert parameter.norm().item() == pytest.approx(math.sqrt(9), rel=1e-6)


def test_weight_decay_shrinks_by_lr_times_decay():
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.zeros(2, 2)
    Muon([parameter], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(parameter.detach(), torch.full((2, 2), 0.95))


def test_a_tensor_rate_moves_as_the_same_number():
    number, tensor = (with_gradient(random_matrix(4, 6)) for _ in range(2))
    Muon([number], lr=0.125).step()
    Muon([tensor], lr=torch.tensor(0.125)).step()
    torch.testing.assert_close(number, tensor, rtol=0, atol=0)


def test_resuming_from_a_state_dict_gives_the_same_weights():
    whole = torch.nn.Parameter(random_matrix(6, 8))
    optimizer = Muon([whole], lr=0.1)
    for step in range(6):
        if step == 3:
            resumed = torch.nn.Parameter(whole.detach().clone())
            second = Muon([resumed], lr=0.5)
            second.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
        whole.grad = random_matrix(6, 8, seed=step)
        optimizer.step()
        if step >= 3:
            resumed.grad = whole.grad.clone()
            second.step()
    torch.testing.assert_close(whole, resumed, rtol=0, atol=0)


def test_parameters_without_a_gradient_stay_and_closures_are_called():
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    assert Muon([parameter]).step(lambda: 3.0) == 3.0
    assert torch.equal(parameter, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr must be at least 0, got lr=-0.1"),
        ({"lr": float("nan")}, "lr must be finite, got lr=nan"),
        ({"momentum": 1.0}, "momentum must be under 1, got momentum=1.0"),
        ({"weight_decay": -1}, "weight_decay must be at least 0, got weight_decay=-1"),
        ({"ns_steps": 0}, "ns_steps must be at least 1, got ns_steps=0"),
        ({"adjust_lr": "best"}, "adjust_lr must be one of .* got adjust_lr='best'"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Muon([torch.nn.Parameter(torch.ones(2, 2))], **options)


def test_a_group_of_its_own_numbers_is_checked_and_left_out():
    optimizer = Muon([torch.nn.Parameter(torch.ones(2, 2))])
    with pytest.raises(ValueError, match="momentum must be under 1, got momentum=2"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, 2))], "momentum": 2})
    assert len(optimizer.param_groups) == 1


def test_a_weight_of_zeros_moves_and_stays_finite():
    parameter = with_gradient(torch.zeros(4, 6))
    Muon([parameter], lr=0.1, normalize_weights=True).step()
    assert parameter.isfinite().all()
    assert parameter.any()


def test_a_bias_is_refused_with_its_shape():
    with pytest.raises(ValueError, match=r"at least 2 dimensions, got a parameter of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.ones(3))])


def test_orthogonalize_refuses_a_vector():
    with pytest.raises(ValueError, match=r"at least 2 dimensions, got shape \(3,\)"):
        orthogonalize(torch.ones(3))
