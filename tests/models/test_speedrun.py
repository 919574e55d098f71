from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fasttricks.models import speedrun_net, use_winograd_, whiten_


def small(**options):
    torch.manual_seed(0)
    return speedrun_net(**({"widths": (26, 28, 32)} | options))


def reference(model, x):
    """The network written again on the bare weights, in training (batch statistics)."""
    w = model.state_dict()

    def norm(x, name):
        mean = x.mean((0, 2, 3), keepdim=True)
        var = (x - mean).square().mean((0, 2, 3), keepdim=True)
        return (x - mean) / (var + 1e-3).sqrt() + w[f"{name}.bias"].view(-1, 1, 1)

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    x = gelu(F.conv2d(x, w["whiten.weight"], w["whiten.bias"]))
    for group in range(3):
        x = F.max_pool2d(F.conv2d(x, w[f"groups.{group}.0.conv.weight"], padding=1), 2)
        x = gelu(norm(x, f"groups.{group}.0.norm"))
        if f"groups.{group}.1.conv.weight" in w:
            x = F.conv2d(x, w[f"groups.{group}.1.conv.weight"], padding=1)
            x = gelu(norm(x, f"groups.{group}.1.norm"))
        else:
            y = F.conv2d(x, w[f"groups.{group}.1.body.0.conv.weight"], padding=1)
            y = gelu(norm(y, f"groups.{group}.1.body.0.norm"))
            y = F.conv2d(y, w[f"groups.{group}.1.body.1.conv.weight"], padding=1)
            x = gelu(x + norm(y, f"groups.{group}.1.body.1.norm"))
    return x.amax((2, 3)) @ w["head.weight"].T / x.shape[1]


def test_ten_classes_have_the_parameters_counted_by_hand():
    whiten = 3 * 2 * 2 * 24 + 24
    convs = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    norms = 2 * (2 * 64 + 4 * 256)
    total = whiten + convs + norms + 256 * 10
    assert total == 1_972_792
    model = speedrun_net()
    assert sum(p.numel() for p in model.parameters()) == total
    frozen = 3 * 2 * 2 * 24 + norms // 2
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == total - frozen


@pytest.mark.parametrize("size", [24, 27, 32])
@pytest.mark.parametrize("depths", [None, (2, 2, 3), (3, 3, 3)])
def test_forward_is_the_network_written_by_hand(size, depths):
    model = small(depths=depths).double()
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    for module in model.modules():  # nothing stays the identity
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.uniform_(-1, 1)
        if isinstance(module, nn.Conv2d):
            module.weight.data.normal_(std=0.1)
    torch.testing.assert_close(model(images), reference(model, images), atol=1e-6, rtol=1e-6)


def test_norms_are_those_of_the_record():
    norms = [m for m in small().modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 6
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.4)}
    assert not any(m.weight.requires_grad for m in norms)
    assert all(m.bias.requires_grad for m in norms)


def test_convolutions_start_as_the_identity_on_their_first_channels():
    model = small()
    for group in model.groups:
        for block in group:
            x = torch.randn(2, block.conv.in_channels, 5, 5)
            assert torch.equal(block.conv(x)[:, : x.shape[1]], x)


def test_head_has_unit_standard_deviation_and_logits_are_divided_by_the_width():
    model = small()
    torch.testing.assert_close(model.head.weight.std(), torch.tensor(1.0))
    assert model.head.bias is None
    assert model.logit_scale == 1 / 32
    assert small(logit_scale=0.5).logit_scale == 0.5


def test_whitening_has_two_filters_per_direction_frozen_with_a_trainable_bias():
    for channels in (1, 3, 5):
        model = small(in_channels=channels)
        assert model.whiten.weight.shape == (8 * channels, channels, 2, 2)
        assert not model.whiten.weight.requires_grad
        assert model.whiten.bias.requires_grad
        whiten_(model.whiten, torch.randn(8, channels, 8, 8))
        assert not model.whiten.weight.requires_grad
    bound = (3 * 2 * 2) ** -0.5
    bias = speedrun_net(widths=(2,)).whiten.bias
    assert bias.abs().max() <= bound
    assert bias.abs().max() > bound / 2


def test_a_frozen_whitening_bias_ends_the_backward_pass_at_the_first_group():
    model, images = small(), torch.randn(2, 3, 8, 8)
    assert model.act(model.whiten(images)).requires_grad
    model.whiten.bias.requires_grad_(False)
    whitened = model.act(model.whiten(images))
    assert not whitened.requires_grad
    first = model.groups[0][0].conv(whitened)
    inputs = [following for following, _ in first.grad_fn.next_functions]
    assert inputs[0] is None  # no gradient for the convolution's input
    model(images).sum().backward()
    assert model.groups[0][0].conv.weight.grad is not None


def test_the_whitening_may_have_fewer_filters():
    model = small(whiten_channels=16)
    assert model.whiten.weight.shape == (16, 3, 2, 2)
    whiten_(model.whiten, torch.randn(8, 3, 8, 8))
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_a_groups_convolutions_may_differ_in_width_and_kernel():
    model = small(widths=(8, (10, 12), [14, 16]), second_kernel_sizes=(1, 3, 5))
    shapes = [tuple(m.weight.shape) for m in model.groups.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [
        (8, 24, 3, 3),
        (8, 8, 1, 1),
        (10, 8, 3, 3),
        (12, 10, 3, 3),
        (14, 12, 3, 3),
        (16, 14, 5, 5),
    ]
    assert model.logit_scale == 1 / 16
    assert model(torch.randn(2, 3, 17, 17)).shape == (2, 10)
    # The 1 x 1 starts as the identity too.
    assert torch.equal(model.groups[0][1].conv.weight.squeeze(), torch.eye(8))


def test_a_third_convolution_starts_as_the_identity_and_follows_its_groups_kernel():
    model = small(widths=(8, 12, (16, 16)), depths=(2, 3, 3), second_kernel_sizes=(3, 1, 3))
    plain = small(widths=(8, 12, 16))
    extra = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == 12 * 12 + 2 * 12 - 8 * 12 * 12 + 9 * 16 * 16 + 2 * 16
    for group in model.groups[1:]:
        for block in group[1].body:
            x = torch.randn(2, block.conv.in_channels, 5, 5)
            assert torch.equal(block.conv(x), x)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_a_third_convolution_may_be_computed_by_winograd():
    model = small(widths=(8, 64, 64), depths=(2, 3, 3))
    images, weights = torch.randn(4, 3, 24, 24), torch.randn(4, 10)
    plain = model(images)
    (plain * weights).sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    assert use_winograd_(model) == 5
    found = model(images)
    (found * weights).sum().backward()
    assert not torch.equal(found, plain)
    torch.testing.assert_close(found, plain, atol=1e-3, rtol=1e-3)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    for gradient, wanted in zip(gradients, expected, strict=True):
        # Rounding makes another pixel a window's maximum now and then.
        assert (gradient - wanted).norm() < 1e-2 * wanted.norm()


@pytest.mark.parametrize("widths", [(4,), (4, 6), (4, 6, 8, 10)])
def test_smallest_image_halves_to_one_pixel_for_any_number_of_groups(widths):
    model = small(widths=widths)
    assert model.min_size == 2 ** len(widths)
    images = torch.randn(2, 3, model.min_size, model.min_size)
    assert model.forward_features(images).shape == (2, widths[-1], 1, 1)


def test_reset_is_a_new_model_in_the_same_storage():
    model = small()
    storage = [tensor.data_ptr() for tensor in model.state_dict().values()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whiten_(model.whiten, torch.randn(4, 3, 9, 9))
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    torch.manual_seed(5)
    model.reset_parameters()
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    model.reset_parameters()
    after = model.state_dict()
    assert [tensor.data_ptr() for tensor in after.values()] == storage
    for name, tensor in after.items():
        assert torch.equal(tensor, first[name]), name
        # Norms start at constants, and a square convolution as nothing but the identity.
        square = "conv" in name and tensor.shape[0] == tensor.shape[1]
        fixed = "norm" in name or square
        assert torch.equal(tensor, before[name]) == fixed, name
    x = torch.randn(1, 24, 5, 5)
    assert torch.equal(model.groups[0][0].conv(x)[:, :24], x)
    torch.testing.assert_close(model.head.weight.std(), torch.tensor(1.0))
    assert not model.whiten.weight.requires_grad


def test_state_dict_names_are_frozen():
    parts = [
        "conv.weight",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]
    blocks = [f"groups.{group}.{half}" for group in range(3) for half in range(2)]
    expected = ["whiten.weight", "whiten.bias"]
    expected += [f"{block}.{part}" for block in blocks for part in parts] + ["head.weight"]
    assert list(small().state_dict()) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"widths": 64}, TypeError, "one number per group, got widths=64"),
        ({"widths": ()}, ValueError, "at least 1 group"),
        ({"widths": (8, (4, 0))}, ValueError, r"widths\[1\] must be at least 1"),
        (
            {"widths": (8, (4, 4, 4))},
            ValueError,
            r"a number or a pair, got widths\[1\]=\(4, 4, 4\)",
        ),
        ({"whiten_channels": 26}, ValueError, "at most 8 \\* in_channels = 24, got .*=26"),
        ({"whiten_channels": 3}, ValueError, "must be even"),
        ({"whiten_channels": 0}, ValueError, "at least 2, got whiten_channels=0"),
        ({"second_kernel_sizes": (1,)}, ValueError, "one number per group, 3, got"),
        ({"second_kernel_sizes": 3}, TypeError, "a sequence, one number per group, got .*=3"),
        ({"depths": (2, 3)}, ValueError, "one number per group, 3, got depths=\\(2, 3\\)"),
        ({"depths": 3}, TypeError, "a sequence, one number per group, got depths=3"),
        ({"depths": (2, 2, 4)}, ValueError, r"depths\[2\] must be one of 2, 3, got depths\[2\]=4"),
        (
            {"depths": (2, 3, 2), "widths": (8, (8, 16), 16)},
            ValueError,
            r"the same for both .* with depths\[1\]=3, .* got widths\[1\]=\(8, 16\)",
        ),
        ({"second_kernel_sizes": (2, 3, 3)}, ValueError, "kernel_size must be odd"),
        ({"widths": (8, 0)}, ValueError, r"widths\[1\] must be at least 1, got widths\[1\]=0"),
        ({"widths": (8, 2.5)}, TypeError, r"widths\[1\]=2.5"),
        ({"logit_scale": -1}, ValueError, "logit_scale=-1"),
        ({"batch_norm_momentum": 1.4}, ValueError, "batch_norm_momentum=1.4"),
    ],
)
def test_bad_numbers_are_named(options, error, message):
    with pytest.raises(error, match=message):
        speedrun_net(**options)


def test_the_whitening_may_have_an_activation_of_its_own():
    model = speedrun_net(act="silu", whiten_act="gelu")
    assert isinstance(model.act, nn.GELU)
    inner = {type(m) for m in model.groups.modules() if isinstance(m, nn.GELU | nn.SiLU)}
    assert inner == {nn.SiLU}
    assert isinstance(speedrun_net(act="silu").act, nn.SiLU)
    with pytest.raises(ValueError, match="whiten_act must be one of .* got whiten_act='best'"):
        speedrun_net(whiten_act="best")
