"""ResNet-18 to 152: torchvision's networks with the ImageNet stem, published sizes, drop path."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fasttricks import models

DEPTHS = [18, 34, 50, 101, 152]
# torchvision's documented numbers of parameters, with 1000 classes
TORCHVISION = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
# GFLOPS of its documentation, which are multiply-adds, at 224 x 224
GIGA_MACS = {18: 1.814, 34: 3.664, 50: 4.089, 101: 7.801, 152: 11.514}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def build(depth, *args, **options):
    return getattr(models, f"resnet{depth}")(*args, **options)


@pytest.mark.parametrize("depth", DEPTHS)
def test_with_the_imagenet_stem_parameters_and_macs_are_torchvisions(depth):
    with torch.device("meta"):
        model = build(depth, 1000, stem="imagenet")
        assert count(model) == TORCHVISION[depth]
        with FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, 3, 224, 224))
    macs = counter.get_total_flops() / 2
    assert macs / 1e9 == pytest.approx(GIGA_MACS[depth], abs=0.001)


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvisions_weights_load_and_give_its_outputs(depth):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=7)
    for module in theirs.modules():  # statistics and scales that are no defaults
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    ours = build(depth, 7, stem="imagenet")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.train()(x), theirs.train()(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_small_stem_keeps_the_size_and_the_docstring_its_count(depth):
    with torch.device("meta"):
        model = build(depth)
        features = model.forward_features(torch.zeros(1, 3, 32, 32))
    assert features.shape[2:] == (4, 4)
    assert f"{count(model):,} parameters" in getattr(models, f"resnet{depth}").__doc__
    assert model.min_size == 8


def test_zero_init_makes_every_block_its_shortcut():
    model = build(18, width=4, zero_init_residual=True).eval()
    block = model.layer1[0]
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x.relu())
    plain = build(50, width=4, zero_init_residual=True).layer2[1].eval()
    y = torch.randn(2, 32, 8, 8)
    assert torch.equal(plain(y), y.relu())


def test_drop_path_rises_with_depth_and_is_the_identity_in_evaluation():
    model = build(18, width=4, drop_path=0.4)
    rates = [m.p for m in model.modules() if isinstance(m, models.DropPath)]
    assert rates == pytest.approx([0.05 * (k + 1) for k in range(8)])
    twin = build(18, width=4)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(model.eval()(x), twin.eval()(x))


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = models.DropPath(0.25)(torch.ones(20_000, 2, 1, 1))
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert (models.DropPath(1.0)(torch.ones(3, 1)) == 0).all()


def test_dropout_works_on_the_features():
    model = build(18, width=4, dropout=0.5)
    assert model.dropout.p == 0.5
    x = torch.randn(4, 3, 16, 16)
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "large"}, "stem must be one of 'small', 'imagenet', got stem='large'"),
        ({"width": 0}, "width must be at least 1, got width=0"),
        ({"drop_path": 1.5}, "drop_path must be between 0 and 1, got drop_path=1.5"),
        ({"dropout": -1}, "dropout must be between 0 and 1"),
        ({"celu_alpha": 0.1}, 'applies to act="celu" only'),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(18, **options)


@pytest.mark.parametrize("depth", [18, 20, 50])
def test_blocks_that_would_stay_the_identity_are_refused(depth):
    with pytest.raises(ValueError, match="zero_init_residual must be False with frozen_scale=True"):
        build(depth, width=4, zero_init_residual=True, frozen_scale=True)


def test_the_imagenet_stem_asks_for_larger_images():
    with pytest.raises(ValueError, match="at least 32 x 32 pixels, got 16 x 16"):
        build(18, width=4, stem="imagenet")(torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize("depth", [18, 50])
def test_a_head_that_is_put_in_is_the_one_that_is_used(depth):
    model = build(depth, width=8)
    model.head = nn.Linear(model.head.in_features, 3)
    assert model.fc is model.head
    assert "head.weight" not in model.state_dict()
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
