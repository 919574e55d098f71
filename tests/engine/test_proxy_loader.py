"""The proxy loader: who is chosen and what is learned, against a loop written plainly."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fasttricks import lr_range_test, precompile
from fasttricks.data import DeviceLoader, ImageSet, PrunedLoader
from fasttricks.engine import ProxyLoader, StochasticWeightAverage, Trainer
from fasttricks.lr_scheduler import ScheduledGroups
from fasttricks.schedules import linear
from fasttricks.transforms import Normalize, ProgressiveResize, RandomTranslate


def make_set(number=40, classes=5):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (number, 3, 8, 8), dtype=torch.uint8, generator=generator)
    names = tuple(map(str, range(classes)))
    return ImageSet(pixels, torch.arange(number) % classes, classes=names, name="noise")


def make_loader(**options):
    transforms = (RandomTranslate(1), Normalize(0.5, 0.25))
    options = {"batch_size": 8, "transforms": transforms, "shuffle": True, **options}
    return DeviceLoader(make_set(), **options)


def make_model(width=4):
    torch.manual_seed(width)
    body = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(width * 4, 5))


def make_proxied(loader=None, total_steps=None, **options):
    proxy = make_model(2)
    sgd = torch.optim.SGD(proxy.parameters(), lr=0.1, momentum=0.9)
    if total_steps is not None:
        lr = linear(0.1, 0.0, total_steps=total_steps)
        options["schedulers"] = [ScheduledGroups(sgd, {"lr": lr})]
    loader = make_loader() if loader is None else loader
    return ProxyLoader(loader, proxy, sgd, precision="fp32", **options)


def make_trainer(**options):
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Trainer(model, sgd, precision="fp32", progress=False, **options)


def everything(loader):
    """All of a loader's state, tensors flattened out, by which to compare it."""
    found = []

    def take(value):
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                take(value[key])
        elif isinstance(value, list | tuple):
            for one in value:
                take(one)
        else:
            found.append(value.clone() if isinstance(value, torch.Tensor) else value)

    take(loader.state_dict())
    return found


def are_equal(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("share", [0.5, 0.3, 1.0])
@pytest.mark.parametrize("every", [1, 3])
def test_it_chooses_and_learns_as_a_plain_loop_does(share, every):
    loader = make_proxied(share=share, every=every, total_steps=10)
    proxy = make_model(2)
    sgd = torch.optim.SGD(proxy.parameters(), lr=0.1, momentum=0.9)
    plain, step = make_loader(), 0
    for _ in range(2):
        for (images, labels), (served, targets) in zip(plain, loader, strict=True):
            sgd.param_groups[0]["lr"] = 0.1 * (1 - step / 9)
            losses = F.cross_entropy(proxy(images), labels, reduction="none")
            count = round(share * len(images))
            hardest = sorted(losses.argsort(descending=True)[:count].tolist())
            assert torch.equal(served, images[hardest])
            assert torch.equal(targets, labels[hardest])
            if step % every == 0:
                sgd.zero_grad()
                losses[hardest].mean().backward()
                sgd.step()
            step += 1
    assert loader.batches_done == step == 10
    for one, other in zip(proxy.parameters(), loader.proxy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(proxy[1].running_var, loader.proxy[1].running_var)


@given(count=st.integers(1, 20), share=st.floats(0.01, 1.0), part=st.none() | st.integers(1, 25))
def test_the_share_of_any_batch_is_that_with_the_highest_losses(count, share, part):
    torch.manual_seed(count)
    images, targets = torch.randn(count, 12), torch.randint(3, (count,))
    proxy = nn.Linear(12, 3)
    sgd = torch.optim.SGD(proxy.parameters(), lr=0.0)
    options = {"share": share, "precision": "fp32", "micro_batch_size": part}
    ((served, _),) = ProxyLoader([(images, targets)], proxy, sgd, **options)
    losses = F.cross_entropy(proxy(images), targets, reduction="none")
    kept = max(1, round(share * count))
    assert len(served) == kept
    chosen = {_row(images, row) for row in served}
    rest = [losses[i].item() for i in range(count) if i not in chosen]
    assert min(losses[i].item() for i in chosen) >= max(rest, default=-1.0) - 1e-5


def _row(images, row):
    return next(i for i, image in enumerate(images) if torch.equal(image, row))


def test_parts_choose_and_learn_as_the_whole_batch_does():
    found = []
    for part in (None, 3):
        torch.manual_seed(0)
        proxy = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        sgd = torch.optim.SGD(proxy.parameters(), lr=0.1)
        options = {"precision": "fp32", "every": 1, "micro_batch_size": part}
        loader = ProxyLoader(make_loader(), proxy, sgd, **options)
        found.append(([labels for _, labels in loader], proxy[1].weight.detach()))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(one, other)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


def test_what_can_be_learned_is_served_less_and_less():
    # Half of the images tell their class by their brightness; the labels of the others are chance.
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (256,), generator=generator)
    images = torch.randn(256, 3, 8, 8, generator=generator)
    easy = torch.arange(256) < 128
    images[easy] = (2.0 * labels[easy] - 1).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    images[~easy] *= 0.1
    torch.manual_seed(0)
    proxy = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    sgd = torch.optim.SGD(proxy.parameters(), lr=0.5)
    data = TensorDataset(images, labels)
    loader = ProxyLoader(DataLoader(data, batch_size=64, shuffle=True), proxy, sgd, every=2)
    assert len(loader) == 4
    for _ in range(10):
        served = torch.cat([found for found, _ in loader])
    is_easy = served.abs().amin((1, 2, 3)) == 1
    assert len(served) == 128
    assert is_easy.sum() < 16  # a batch may hold too few of the others


def test_without_gradients_it_chooses_and_learns_nothing():
    loader = make_proxied(total_steps=10)
    before = [p.clone() for p in loader.proxy.parameters()]
    with torch.no_grad():
        assert [len(labels) for _, labels in loader] == [4] * 5
    trainer = make_trainer()
    assert len(trainer.predict(loader)) == 20
    trainer.evaluate(loader)
    for one, other in zip(before, loader.proxy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert loader.batches_done == 0
    assert loader.optimizers[0].param_groups[0]["lr"] == 0.1
    assert not loader.optimizers[0].state


def test_no_gradient_is_left_and_none_of_before_counts():
    loader, other = make_proxied(every=1), make_proxied(every=1)
    for parameter in loader.proxy.parameters():
        parameter.grad = torch.ones_like(parameter)
    for _ in zip(loader, other, strict=True):
        assert all(parameter.grad is None for parameter in loader.proxy.parameters())
    assert are_equal(everything(loader), everything(other))


def test_a_run_that_goes_on_ends_as_it_would_have(tmp_path):
    def run(epochs, resume=False, folder=None):
        trainer = make_trainer(lr=linear(0.05, 0.0, total_steps=20))
        loader = make_proxied(total_steps=20)
        trainer.fit(loader, epochs, checkpoints=folder, resume=resume)
        return trainer, loader

    whole = run(4)
    run(2, folder=tmp_path)
    again = run(4, resume=True, folder=tmp_path)
    for one, other in zip(whole[0].model.parameters(), again[0].model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert are_equal(everything(whole[1]), everything(again[1]))
    assert again[1].batches_done == 20
    assert again[1].epoch == 4


def test_trials_and_statistics_leave_it_as_it_was():
    loader = make_proxied(total_steps=100)
    average = StochasticWeightAverage(loader, start_fraction=0.0)
    trainer = make_trainer(callbacks=[average])
    trainer.fit(loader, 1)
    before = everything(loader)
    lr_range_test(trainer, loader=loader, num_steps=10)
    precompile(trainer, loader)
    average.hand_over(trainer.model)
    assert are_equal(before, everything(loader))


def test_a_trial_may_be_longer_than_the_schedules():
    loader = make_proxied()
    sgd = loader.optimizers[0]
    loader.schedulers = [torch.optim.lr_scheduler.OneCycleLR(sgd, 0.1, total_steps=5)]
    before = everything(loader)
    lr_range_test(make_trainer(), loader=loader, num_steps=20)
    assert are_equal(before, everything(loader))


def test_all_sizes_to_come_are_compiled_before():
    sizes = ProgressiveResize({0: 6, 2: 8})
    transforms = (Normalize(0.5, 0.25), sizes)
    loader = make_proxied(make_loader(transforms=transforms, batch_size=12))
    trainer, seen = make_trainer(), []
    trainer.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    precompile(trainer, loader)
    assert {(shape[0], shape[2]) for shape in seen} == {(6, 6), (2, 6), (6, 8), (2, 8)}


def test_it_can_be_copied_and_tells_what_its_loader_does():
    loader = make_proxied()
    assert (loader.batch_size, loader.epoch, len(loader)) == (8, 0, 5)
    loader.set_epoch(3)
    for other in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        assert other.epoch == 3
        assert [len(labels) for _, labels in other] == [4] * 5
    assert loader.epoch == 3
    with pytest.raises(AttributeError, match="no_such_thing"):
        loader.no_such_thing  # noqa: B018


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0.25}, "the proxy's share was 0.5, and now is 0.25; give the same"),
        ({"every": 1}, "the proxy's every was 4, and now is 1"),
        ({"total_steps": None}, "the proxy's schedulers were 1, and now are 0"),
        ({"total_steps": 11}, "the proxy does not fit the saved one"),
    ],
)
def test_the_state_of_another_run_is_refused(change, message):
    state = make_proxied(total_steps=10).state_dict()
    other = make_proxied(**{"total_steps": 10, **change})
    before = everything(other)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
    assert other.batches_done == 0
    if "total_steps" not in change:
        assert are_equal(before, everything(other))


def test_the_state_of_another_proxy_or_loader_is_refused():
    loader = make_proxied()
    state = loader.state_dict()
    for wrong in (None, make_loader().state_dict()):
        with pytest.raises(ValueError, match="must be that of a ProxyLoader"):
            loader.load_state_dict(wrong)
    with pytest.raises(ValueError, match="state_dict"):
        make_loader().load_state_dict(state)
    wide = make_model(3)
    sgd = torch.optim.SGD(wide.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="does not fit the saved one: Error.* in loading"):
        ProxyLoader(make_loader(), wide, sgd).load_state_dict(state)
    sgd = torch.optim.SGD(wide.parameters(), lr=0.2, momentum=0.9)
    with pytest.raises(ValueError, match="the proxy's optimizer 0 was .*0.1.* and now is .*0.2"):
        ProxyLoader(make_loader(), wide, sgd).load_state_dict(state)


def test_a_run_over_a_shuffled_loader_of_torch_goes_on_with_its_proxy_alone(tmp_path):
    images, labels = next(iter(make_loader(batch_size=40)))

    def run(epochs, resume=False, folder=None, proxied=True):
        generator = torch.Generator().manual_seed(3)
        data = TensorDataset(images, labels)
        loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
        train = make_proxied(loader) if proxied else loader
        trainer = make_trainer()
        trainer.fit(train, epochs, checkpoints=folder, resume=resume)
        return [p.detach() for p in trainer.model.parameters()]

    whole = run(4)
    run(2, folder=tmp_path / "proxied")
    assert are_equal(whole, run(4, resume=True, folder=tmp_path / "proxied"))
    run(2, folder=tmp_path / "plain", proxied=False)
    with pytest.raises(ValueError, match="no state for a ProxyLoader"):
        run(4, resume=True, folder=tmp_path / "plain")


def test_a_proxy_whose_weights_are_no_numbers_ends_the_run():
    loader = make_proxied()
    loader.optimizers[0].param_groups[0]["lr"] = 1e30
    with pytest.raises(FloatingPointError, match="the proxy's weights are no longer finite"):
        make_trainer().fit(loader, 4)


def test_validation_on_the_loader_within_leaves_its_place():
    inner = make_loader()
    loader = make_proxied(inner)
    make_trainer().fit(loader, 3, val=inner)
    assert inner.epoch == 3


class Stepping:
    def step(self):
        pass


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"loader": iter([])}, TypeError, "loader must have a length"),
        ({"loader": []}, ValueError, "loader must hold at least one batch"),
        ({"share": 0.0}, ValueError, "share must be"),
        ({"share": 1.5}, ValueError, "share must be at most 1, got share=1.5"),
        ({"every": 0}, ValueError, "every must be"),
        ({"micro_batch_size": 0}, ValueError, "micro_batch_size must be"),
        ({"schedulers": [Stepping()]}, TypeError, "state_dict and load_state_dict, got Stepping"),
        ({"loss": nn.CrossEntropyLoss}, TypeError, "loss must be a function"),
        ({"loss": nn.CrossEntropyLoss(reduction="sum")}, ValueError, "a ProxyLoader must come"),
        ({"loss": nn.PReLU()}, ValueError, "loss must have no parameters of its own"),
    ],
)
def test_bad_arguments_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        make_proxied(**options)


def test_a_pruned_loader_and_what_is_no_module_are_refused():
    pruned = PrunedLoader(make_set(), batch_size=8)
    with pytest.raises(ValueError, match="loader must serve whole batches, got a PrunedLoader"):
        make_proxied(pruned)
    sgd = torch.optim.SGD(make_model().parameters(), lr=0.1)
    with pytest.raises(TypeError, match="proxy must be an nn.Module, got function"):
        ProxyLoader(make_loader(), F.relu, sgd)
    with pytest.raises(ValueError, match="optimizer must hold parameters of the proxy alone"):
        ProxyLoader(make_loader(), make_model(), sgd)
    with pytest.raises(ValueError, match="batches must hold at least one image"):
        list(make_proxied([(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64))]))
    with pytest.raises(TypeError, match="batches must be pairs of tensors"):
        list(make_proxied([torch.zeros(4, 3, 8, 8)]))
