"""One battery for every builder that ``fasttricks.models`` exports: a new one cannot skip it."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

from fasttricks import models


def is_builder(value):
    return inspect.isfunction(value) and "num_classes" in inspect.signature(value).parameters


# What makes each network small enough to test in milliseconds; a builder that is missing here is
# still tested, at its full size.
SMALL = {
    "resnet9": {"width": 4},
    "resnet18": {"width": 4},
    "resnet20": {"width": 4},
    "resnet50": {"width": 4},
    "speedrun_net": {"widths": (8, 12, 16)},
    "vgg11": {"width": 4},
}
# Deeper ones of the same code: their own tests count their layers.
DEEPER = {f"resnet{depth}" for depth in (32, 34, 44, 56, 101, 110, 152)}
DEEPER |= {f"vgg{depth}" for depth in (13, 16, 19)}
BUILDERS = {name: getattr(models, name) for name in models.__all__ if name not in DEEPER}
BUILDERS = {name: value for name, value in BUILDERS.items() if is_builder(value)}


@pytest.fixture(params=sorted(BUILDERS))
def name(request):
    return request.param


@pytest.fixture
def build(name):
    def build(**options):
        torch.manual_seed(0)
        return BUILDERS[name](**(SMALL.get(name, {}) | options))

    return build


def images(n=4, channels=3, size=16):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, channels, size, size, generator=generator)


def test_the_known_builders_are_found():
    assert {"resnet9", "speedrun_net"} <= set(BUILDERS)


def test_signature_is_num_classes_then_keywords(name):
    first, *rest = inspect.signature(BUILDERS[name]).parameters.values()
    assert (first.name, first.default) == ("num_classes", 10)
    assert {p.kind for p in rest} == {inspect.Parameter.KEYWORD_ONLY}
    assert {"in_channels", "act"} <= {p.name for p in rest}
    assert all(p.default is not p.empty for p in rest)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [8, 24, 27, 32, 64])
def test_any_channels_and_sizes_give_one_row_of_logits_per_image(build, channels, size):
    model = build(num_classes=7, in_channels=channels)
    assert model(images(2, channels, size)).shape == (2, 7)


def test_height_and_width_may_differ(build):
    assert build()(images()[..., :9]).shape == (4, 10)


def test_too_small_an_image_is_refused_with_its_size(build):
    model = build()
    least = f"{model.min_size} x {model.min_size}"
    short = images(size=model.min_size)[:, :, 1:]
    for small in (short, short.mT):
        rows, columns = small.shape[2:]
        with pytest.raises(ValueError, match=f"at least {least} pixels, got {rows} x {columns}"):
            model(small)


def test_features_and_head_are_the_whole_model(build):
    model = build().eval()
    features = model.forward_features(images())
    assert features.shape[:2] == (4, model.head.in_features)
    pool = getattr(model, "pool", lambda x: x.amax((2, 3)))  # the speed networks': the maximum
    logits = model.head(pool(features)) * model.logit_scale
    torch.testing.assert_close(model(images()), logits)


@pytest.mark.parametrize("act", ["relu", "celu", "gelu", "silu", "hardswish", nn.Tanh])
def test_act_is_the_only_activation_in_the_model(build, act):
    wanted = type(models.make_activation(act))
    known = {type(models.make_activation(other)) for other in models.ACTIVATIONS}
    found = {type(m) for m in build(act=act).modules() if type(m) in known}
    assert found == {wanted}


def test_activations_with_weights_are_not_shared(build):
    model = build(act=nn.PReLU)
    slopes = [m.weight for m in model.modules() if isinstance(m, nn.PReLU)]
    assert len({id(slope) for slope in slopes}) == len(slopes) > 1


def test_seed_decides_the_weights(build):
    first, second = build(), build()
    for (key, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def test_gradients_reach_every_trainable_parameter(build):
    model = build()
    nn.functional.cross_entropy(model(images(8)), torch.arange(8)).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() > 0, key
            assert torch.isfinite(parameter.grad).all(), key
        else:
            assert parameter.grad is None, key


def test_evaluation_is_deterministic_and_sees_each_image_alone(build):
    model = build()
    model(images())
    model.eval()
    logits = model(images())
    assert torch.equal(model(images()), logits)
    torch.testing.assert_close(model(images()[:1]), logits[:1])


def test_channels_last_keeps_the_results(build):
    plain = build().double()
    logits = plain(images().double())
    fast = build().double().to(memory_format=torch.channels_last)
    found = fast(images().double().to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, logits)
    features = fast.forward_features(images().double().to(memory_format=torch.channels_last))
    assert features.is_contiguous(memory_format=torch.channels_last)


def test_bf16_autocast_is_finite_and_near_float32(build):
    model, x = build(), images(16, size=24)
    logits = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x)
    low.float().sum().backward()
    assert low.dtype == torch.bfloat16
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    # bf16 has 8 bits: a few units of 2**-8 of the largest logit over some ten layers.
    layers = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert (low - logits).abs().max() < max(0.05, 0.005 * layers) * logits.abs().max()


def test_state_dict_round_trip_keeps_the_outputs(build):
    model = build()
    model(images())
    twin = build()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(images()), model.eval()(images()))


def test_a_deep_copy_is_independent(build):
    model = build().eval()
    twin = copy.deepcopy(model)
    expected = model(images())
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(twin(images()), expected)


def test_compiled_in_one_graph_the_outputs_are_equal(build):
    torch.compiler.reset()
    model = build()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for size in (16, 24):
        x = images(size=size)
        torch.testing.assert_close(compiled(x), model(x))


def test_exported_with_any_batch_size_the_outputs_are_equal(build):
    model = build().eval()
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},), strict=False)
    x = images(n=7)
    torch.testing.assert_close(exported.module()(x), model(x))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got num_classes=0"),
        ({"num_classes": 2.5}, TypeError, "num_classes=2.5"),
        ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got in_channels=0"),
        ({"act": "swish"}, ValueError, "celu.*relu.*got act='swish'"),
        ({"act": nn.ReLU()}, TypeError, "give its class"),
    ],
)
def test_bad_arguments_are_named(build, options, error, message):
    with pytest.raises(error, match=message):
        build(**options)


def test_every_norm_takes_the_ghost_batch_size(build):
    norms = [m for m in build(ghost_batch_size=2).modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(type(m) is models.GhostBatchNorm2d and m.ghost_batch_size == 2 for m in norms)


def test_dropout_drops_features_before_the_head(build):
    model = build(dropout=0.5)
    seen = []
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    plain = build()
    plain.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for network in (model, plain):
        network(images(64))
    dropped, kept = seen
    gone = dropped == 0
    assert 0.4 < gone[kept != 0].float().mean() < 0.6
    torch.testing.assert_close(dropped[~gone], 2 * kept[~gone])
    with pytest.raises(ValueError, match="dropout must be between 0 and 1, got dropout=2"):
        build(dropout=2)


def test_exported_to_onnx_the_outputs_are_equal(build, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, x = build().eval(), images()
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)


def test_unknown_options_are_refused(build):
    with pytest.raises(TypeError, match="num_clases"):
        build(num_clases=3)
