"""Networks by name: every builder once, options checked."""

from __future__ import annotations

import inspect

import pytest
import torch

import fasttricks
from fasttricks import build, list_models, models


def test_every_exported_builder_is_listed_under_its_name():
    builders = {
        name
        for name in models.__all__
        if inspect.isfunction(value := getattr(models, name))
        and "num_classes" in inspect.signature(value).parameters
    }
    assert builders == set(list_models())
    assert all(getattr(fasttricks, name) is getattr(models, name) for name in builders)
    assert all(getattr(models, name).__name__ == name for name in builders)


@pytest.mark.parametrize("name", list_models())
def test_each_is_built_with_its_options(name):
    with torch.device("meta"):
        model = build(name, num_classes=3, in_channels=1, act="silu")
        assert model.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
        assert type(model) is type(getattr(models, name)())


def test_unknown_names_and_options_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'resnet9', .*'vgg19', got name='resnet8'"):
        build("resnet8")
    with pytest.raises(ValueError, match=r"vgg11 has the options num_classes, .*, got 'stem'"):
        build("vgg11", stem="imagenet")


@pytest.mark.parametrize("winograd", [False, True])
@pytest.mark.parametrize("name", ["resnet9", "resnet18", "resnet20", "vgg11", "speedrun_net"])
def test_fx_traces_every_family(name, winograd):
    model = build(name, num_classes=3).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        if winograd:
            models.use_winograd_(model, evaluation=True)
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
