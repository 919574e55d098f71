"""Other activations and folded norms: what changes, what stays, equal outputs."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune

from fasttricks import build, fuse, replace_activation_

SMALL = {
    "resnet9": {"width": 4},
    "resnet18": {"width": 4},
    "resnet20": {"width": 4},
    "resnet50": {"width": 4},
    "speedrun_net": {"widths": (8, 12, 16)},
    "vgg11": {"width": 4},
}


def trained(name):
    """A network whose norms have statistics and scales of their own."""
    torch.manual_seed(0)
    model = build(name, **SMALL[name])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


@pytest.mark.parametrize("name", SMALL)
def test_a_fused_network_gives_the_same_and_has_no_norm_behind_a_convolution(name):
    model, images = trained(name), torch.randn(4, 3, 16, 16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = fuse(model, images)
    with torch.no_grad():
        torch.testing.assert_close(fused(images), model.eval()(images), rtol=1e-4, atol=1e-5)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    # the speed network pools between the convolution and the norm, once a group
    assert norms == (3 if name == "speedrun_net" else 0)
    assert not fused.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_convolution_that_serves_twice_is_left_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(self.conv(self.conv(x)))

    model = Twice().eval()
    model.bn.running_mean.fill_(0.3)
    x = torch.randn(2, 3, 4, 4)
    fused = fuse(model, x)
    assert isinstance(fused.bn, nn.BatchNorm2d)
    torch.testing.assert_close(fused(x), model(x))


class Between(nn.Module):
    """A norm after something that changes a convolution's result in place."""

    def __init__(self, between):
        super().__init__()
        self.conv, self.between, self.bn = nn.Conv2d(3, 3, 1), between, nn.BatchNorm2d(3)
        self.bn.running_mean.fill_(0.3)

    def forward(self, x):
        out = self.conv(x)
        if self.between is None:
            out += x
            return self.bn(out)
        return self.bn(self.between(out))


@pytest.mark.parametrize("between", [nn.ReLU(inplace=True), None])
def test_a_norm_of_what_was_changed_in_place_stays(between):
    model, x = Between(between).eval(), torch.randn(2, 3, 4, 4)
    fused = fuse(model, x)
    assert isinstance(fused.bn, nn.BatchNorm2d)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))


def test_norms_that_do_more_stay():
    class NormAct(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    for norm in (NormAct(3), nn.BatchNorm2d(3, track_running_stats=False)):
        model, x = nn.Sequential(nn.Conv2d(3, 3, 1), norm).eval(), torch.randn(2, 3, 4, 4)
        fused = fuse(model, x)
        assert type(fused[1]) is type(norm)
        with torch.no_grad():
            torch.testing.assert_close(fused(x), model(x))


def test_a_convolution_whose_result_is_used_elsewhere_too_is_refused():
    class Preactivated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.bn.running_mean.fill_(0.3)

        def forward(self, x):
            out = self.conv(x)
            return out + self.bn(out)

    with pytest.raises(ValueError, match="must use the result of a convolution in its norm alone"):
        fuse(Preactivated(), torch.randn(2, 3, 4, 4))


def test_torchvisions_activations_are_replaced_in_place():
    model = torchvision.models.resnet18().eval()
    x = torch.randn(1, 3, 32, 32)
    assert replace_activation_(model, "celu", celu_alpha=0.5) == 9
    kinds = {type(module) for module in model.modules()}
    assert nn.ReLU not in kinds
    assert sum(isinstance(module, nn.CELU) for module in model.modules()) == 9
    assert model.relu.alpha == 0.5
    assert not model.relu.training
    assert model(x).shape == (1, 1000)


def test_each_place_gets_a_module_of_its_own():
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Hardswish(), nn.PReLU()))
    assert replace_activation_(model, nn.PReLU) == 3
    assert len({id(m) for m in model.modules() if isinstance(m, nn.PReLU)}) == 3


def test_an_activation_that_serves_twice_is_replaced_in_both_places():
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), act)
    assert replace_activation_(model, "celu") == 2
    assert [type(layer).__name__ for layer in model] == ["Linear", "CELU", "Linear", "CELU"]


def test_gates_are_no_activations():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sigmoid())
    assert replace_activation_(model, "celu") == 1
    assert isinstance(model[2], nn.Sigmoid)


def test_weights_of_activations_have_the_networks_dtype():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU())).double()
    replace_activation_(model, nn.PReLU)
    assert model(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64


def test_what_cannot_be_replaced_is_said():
    with pytest.raises(ValueError, match="must have an activation that is a module, got Linear"):
        replace_activation_(nn.Linear(2, 2), "celu")
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match="got act='swish'"):
        replace_activation_(model, "swish")
    assert isinstance(model[0], nn.ReLU)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning")
@pytest.mark.parametrize("name", ["resnet9", "resnet20"])
def test_torchs_dynamic_quantisation_of_the_head_stays_near(name):
    model, images = trained(name).eval(), torch.randn(8, 3, 16, 16)
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        exact, quantised = model(images), small(images)
    assert (exact - quantised).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("kind", [dict, tuple])
def test_outputs_of_any_structure_are_compared(kind):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            nn.init.constant_(self.norm.running_var, 4.0)

        def forward(self, x):
            y = self.conv(x)
            return {"a": self.norm(y), "b": y} if kind is dict else (self.norm(y), y)

    with pytest.raises(ValueError, match="the result of a convolution in its norm alone"):
        fuse(Two(), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "pruned"])
def test_a_convolution_whose_weight_is_computed_stays_unfused(how):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    if how == "pruned":
        prune.l1_unstructured(model[0], "weight", 0.5)
    else:
        getattr(nn.utils.parametrizations, how)(model[0])
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model(x)  # after which a pruned weight can be copied
    fused = fuse(model, x)
    assert isinstance(fused[1], nn.BatchNorm2d)
    torch.testing.assert_close(fused(x), model.eval()(x))


def test_masks_of_infinities_are_equal_to_themselves():
    class Masked(nn.Sequential):
        def forward(self, x):
            return super().forward(x), torch.full((3,), -torch.inf), torch.tensor(torch.nan)

    model = Masked(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert isinstance(fuse(model, torch.randn(2, 3, 8, 8))[1], nn.Identity)


def test_a_transformers_layer_takes_it_in_evaluation_too():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, activation=nn.ReLU(), batch_first=True, dropout=0.0
    )
    assert replace_activation_(layer, "tanh") == 1
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), layer.train()(x))
