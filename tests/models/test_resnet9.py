from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fasttricks.models import resnet9


def count(model):
    return sum(p.numel() for p in model.parameters())


def reference(model, x, alpha):
    """The network written again on the bare weights, in evaluation."""
    w = model.state_dict()

    def block(x, name):
        x = F.conv2d(x, w[f"{name}.conv.weight"], padding=1)
        mean, var = w[f"{name}.norm.running_mean"], w[f"{name}.norm.running_var"]
        scale = w[f"{name}.norm.weight"] / (var + 1e-5).sqrt()
        x = (x - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + w[f"{name}.norm.bias"].view(-1, 1, 1)
        return torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0) / alpha))

    x = block(x, "prep")
    x = F.max_pool2d(block(x, "layer1"), 2)
    x = x + block(block(x, "residual1.body.0"), "residual1.body.1")
    x = F.max_pool2d(block(x, "layer2"), 2)
    x = F.max_pool2d(block(x, "layer3"), 2)
    x = x + block(block(x, "residual3.body.0"), "residual3.body.1")
    return x.amax((2, 3)) @ w["head.weight"].T / 8


def with_random_norms(model):
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def test_ten_classes_have_the_published_number_of_parameters():
    convs = 9 * (3 * 64 + 64 * 128 + 2 * 128**2 + 128 * 256 + 256 * 512 + 2 * 512**2)
    norms = 2 * (64 + 3 * 128 + 256 + 3 * 512)
    assert convs + norms + 512 * 10 == 6_573_120
    assert count(resnet9()) == 6_573_120


def test_forward_is_the_network_written_by_hand():
    torch.manual_seed(0)
    model = with_random_norms(resnet9(width=8, in_channels=2).double())
    images = torch.randn(3, 2, 27, 19, dtype=torch.float64)
    torch.testing.assert_close(model(images), reference(model, images, 0.075), atol=1e-6, rtol=1e-6)


def test_celu_alpha_is_the_ladders_value_for_trained_and_frozen_scales():
    for options, alpha in [
        ({}, 0.075),
        ({"frozen_scale": True}, 0.3),
        ({"frozen_scale": True, "celu_alpha": 0.5}, 0.5),
    ]:
        acts = [m for m in resnet9(width=2, **options).modules() if isinstance(m, nn.CELU)]
        assert [act.alpha for act in acts] == [alpha] * 8


def test_pool_first_equals_pool_last_only_up_to_the_norms_statistics():
    # In evaluation the norm is a growing line and CELU grows: pooling commutes with both.
    torch.manual_seed(0)
    last, first = resnet9(width=4), resnet9(width=4, pool_first=True)
    first.load_state_dict(with_random_norms(last).state_dict())
    first.eval()
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(last(images), first(images))
    assert not torch.allclose(last.train()(images), first.train()(images))


def test_frozen_scale_trains_all_but_the_scales():
    model = resnet9(width=2, frozen_scale=True)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n in dict(model.named_parameters()) if n.endswith("norm.weight")}
    assert len(frozen) == 8


def test_norm_options_reach_every_norm():
    model = resnet9(width=2, batch_norm_eps=1e-3, batch_norm_momentum=0.2)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.2)}


def test_logit_scale_multiplies_the_logits():
    model = resnet9(width=2).eval()
    images = torch.randn(2, 3, 8, 8)
    expected = model(images) * 2
    model.logit_scale = 0.25
    torch.testing.assert_close(model(images), expected)


def test_state_dict_names_are_frozen():
    blocks = [
        "prep",
        "layer1",
        "residual1.body.0",
        "residual1.body.1",
        "layer2",
        "layer3",
        "residual3.body.0",
        "residual3.body.1",
    ]
    parts = [
        "conv.weight",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]
    expected = [f"{block}.{part}" for block in blocks for part in parts] + ["head.weight"]
    assert list(resnet9(width=2).state_dict()) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be at least 1, got width=0"),
        ({"logit_scale": 0}, "logit_scale=0"),
        ({"batch_norm_eps": -1e-5}, "batch_norm_eps=-1e-05"),
        ({"batch_norm_momentum": 2}, "batch_norm_momentum=2"),
        ({"act": "gelu", "celu_alpha": 0.3}, "celu_alpha=0.3 with act='gelu'"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        resnet9(**options)
