"""Steps replayed from a CUDA graph: on a GPU, and on the CPU with a stand-in for torch's graph.

The stand-in keeps a graph's rules: while it records nothing takes place, no value can be read back,
and a replay repeats the recorded operations on the recorded memory, numbers and all.
"""

from __future__ import annotations

import copy
import weakref
from contextlib import contextmanager, nullcontext
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from heated_loss import Heated
from random_batches import make_batches
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fasttricks.engine import Callback, FreezeAfter, Trainer, precompile, profile_steps
from fasttricks.engine import _cuda_graph as module
from fasttricks.lr_scheduler import ScheduledGroups
from fasttricks.optim import Muon
from fasttricks.schedules import linear


def make_model(seed=0, *, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.CELU(), nn.Flatten(), nn.Linear(144, 5)
    )


BATCHES = [*make_batches(5), *make_batches(1, size=7, seed=4)]


def train(device, *, cuda_graph, epochs=6, batches=BATCHES, muon=True, callbacks=(), **options):
    """Train with a schedule, a clipped norm, and a bias that stops training midway."""
    model = make_model().to(device)
    others = [p for p in model.parameters() if not muon or p.ndim != 4]
    optimizers = [torch.optim.SGD(others, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)]
    if muon:
        optimizers.insert(0, Muon([model[0].weight], lr=0.02, normalize_weights=True))
    trainer = Trainer(
        model,
        optimizers,
        lr=linear(0.05, 0.0, total_steps=epochs * len(batches) + 1),
        precision="fp32",
        progress=False,
        grad_clip=0.5,
        cuda_graph=cuda_graph,
        callbacks=[FreezeAfter([model[0].bias], steps=18), *callbacks],
        **options,
    )
    trainer.fit(batches, epochs)
    return trainer


def assert_close(one, other, *, rtol=1e-4, atol=1e-5):
    values = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    for value, expected in values:
        torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)
    for row, expected in zip(one.history.rows, other.history.rows, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=rtol)
        assert row["accuracy"] == pytest.approx(expected["accuracy"], abs=10 * rtol)
        assert row["lr"] == pytest.approx(expected["lr"])


# On a GPU ---------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("cuda_graph", [True, "step"])
@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 5}, {"select": 0.5}])
def test_a_replayed_graph_trains_as_the_plain_step(cuda_graph, options):
    plain, graphed = (train("cuda", cuda_graph=choice, **options) for choice in (False, cuda_graph))
    assert graphed._gradients.graph._recordings
    # Muon multiplies in bf16 there, where a last bit of the gradient may turn one of the update.
    assert_close(graphed, plain, rtol=1e-2, atol=1e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("cuda_graph", [True, "step"])
def test_a_loss_is_trained_by_replays_too(cuda_graph):
    heats = []
    for choice in (False, cuda_graph):
        model, loss = make_model().cuda(), Heated().cuda()
        optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.05)
        options = {"precision": "fp32", "progress": False, "cuda_graph": choice}
        Trainer(model, optimizer, loss=loss, **options).fit(make_batches(4), 4)
        heats.append(loss.heat.item())
    assert heats[0] != 0
    assert heats[1] == pytest.approx(heats[0], rel=1e-3)


@pytest.mark.cuda
def test_a_part_that_is_put_into_evaluation_mode_is_so_in_the_graph():
    class Freeze(Callback):
        def on_epoch_start(self, trainer):
            if trainer.history.rows:
                trainer.model[1].eval()

    plain, graphed = (
        train("cuda", cuda_graph=choice, callbacks=[Freeze()], muon=False)
        for choice in (False, True)
    )
    assert_close(graphed, plain)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["Adagrad", "Adam", "AdamW", "RMSprop", "SGD"])
def test_the_update_of_torchs_optimizers_is_replayed(kind):
    if kind == "Adagrad" and not module._has_fused_adagrad(torch.device("cuda")):
        pytest.skip("this torch has no fused Adagrad on CUDA")
    models = []
    for choice in (False, "step"):
        # The gradient of a bias before a batch norm is rounding, which Adam would make a step.
        model = make_model(bias=False).cuda()
        optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.01)
        options = {"precision": "fp32", "progress": False, "cuda_graph": choice}
        trainer = Trainer(model, optimizer, **options)
        trainer.fit(make_batches(4), 4)
        models.append(model)
    assert trainer._gradients.graph._recordings
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


# On the CPU, with a stand-in --------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Notes all operations on tensors, and what the memory held that was there before."""

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.made = [], {}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        for tensor in tensors_of((args, kwargs)):
            place = place_of(tensor)
            if place not in self.made and place not in self.before:
                self.before[place] = (tensor, tensor.detach().clone())
        result = func(*args, **kwargs)
        known = {place_of(tensor) for tensor in tensors_of((args, kwargs))}
        self.made |= {place_of(tensor) for tensor in tensors_of(result)} - known
        self.calls.append((func, args, kwargs, result))
        return result


def tensors_of(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def place_of(tensor):
    return tensor.untyped_storage().data_ptr()


class Graph:
    """Stands for ``torch.cuda.CUDAGraph``; a pool lives as long as one of its graphs."""

    replays = 0
    living: ClassVar = weakref.WeakSet()
    place = "pool"

    def replay(self):
        type(self).replays += 1
        with torch.no_grad():
            for func, args, kwargs, held in self.operations.calls:
                fresh = func(*args, **kwargs)
                for old, new in zip(tensors_of(held), tensors_of(fresh), strict=True):
                    if place_of(old) != place_of(new):
                        old.copy_(new)

    def pool(self):
        return self.place


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


@pytest.fixture
def pools(monkeypatch):
    """Let graphs be recorded on the CPU; the pools that recordings were given."""
    given = []

    @contextmanager
    def capture(graph, pool, stream, capture_error_mode):
        assert pool is None or any(one.place is pool for one in Graph.living)
        assert isinstance(stream, Stream)
        assert capture_error_mode == "thread_local"
        Graph.living.add(graph)
        given.append(pool)
        graph.operations = Operations()
        with graph.operations:
            yield
        with torch.no_grad():
            for tensor, before in graph.operations.before.values():
                tensor.copy_(before)

    monkeypatch.setattr(module, "_check_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(Graph, "replays", 0)
    monkeypatch.setattr(Graph, "living", weakref.WeakSet())
    return given


@pytest.mark.parametrize("cuda_graph", [True, "step"])
@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 5}, {"select": 0.5}])
def test_replays_train_as_the_plain_step(pools, cuda_graph, options):
    graphed = train("cpu", cuda_graph=cuda_graph, **options)
    # A batch of 12 comes 15 times before the bias stops and 15 times after, one of 7 three times
    # each. The first three of a kind are no replays, nor is the update that makes Muon's momentum.
    assert pools == [None, "pool"]
    assert Graph.replays == 2 * (15 - 3) - (cuda_graph == "step")
    assert_close(graphed, train("cpu", cuda_graph=False, **options))


def test_each_shape_is_recorded_in_one_pool(pools):
    batches = [*make_batches(4), *make_batches(4, size=7, seed=3)]
    graphed = train("cpu", cuda_graph="step", batches=batches, epochs=4)
    assert pools == [None, *["pool"] * 3]
    assert_close(graphed, train("cpu", cuda_graph=False, batches=batches, epochs=4))


def test_a_replay_leaves_the_gradients_of_its_batch(pools):
    model = make_model()
    graphed = module.Graphed(model, torch.device("cpu"))

    def compute(images, targets):
        outputs = model(images)
        loss = F.cross_entropy(outputs, targets)
        loss.backward()
        return loss.detach(), [(loss.detach(), outputs.detach(), targets)]

    for images, targets in make_batches(6):
        model.zero_grad()
        other = copy.deepcopy(model)
        loss, [(_, outputs, _)] = graphed(compute, images, targets)
        expected = F.cross_entropy(other(images), targets)
        expected.backward()
        assert torch.equal(loss, expected.detach())
        assert outputs.shape == (12, 5)
        for parameter, same in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(parameter.grad, same.grad)
    assert Graph.replays == 3


class Sets(Callback):
    """Sets a number of the last optimizer's first group at an update."""

    def __init__(self, name, value, at):
        self.name, self.value, self.at = name, value, at

    def on_step_start(self, trainer):
        if trainer.step_count == self.at:
            trainer.optimizers[-1].param_groups[0][self.name] = self.value


@pytest.mark.parametrize(
    ("name", "value", "recorded"),
    [("weight_decay", 0.1, [None, None]), ("momentum", 0.0, [None, None]), ("lr", 0.2, [None])],
)
def test_another_number_is_not_replayed_from_the_old_one(pools, name, value, recorded):
    options = {"batches": make_batches(5), "epochs": 3}
    graphed, plain, other = (
        train("cpu", cuda_graph=choice, callbacks=[Sets(name, value, at)], **options)
        for choice, at in (("step", 8), (False, 8), (False, 99))
    )
    assert pools == recorded
    assert_close(graphed, plain)
    assert not torch.allclose(plain.model[-1].weight, other.model[-1].weight, atol=1e-4)


class Changes(Callback):
    """Changes a setting of the trainer at update 8."""

    def __init__(self, name, value):
        self.name, self.value = name, value

    def on_step_start(self, trainer):
        if trainer.step_count == 8:
            setattr(trainer, self.name, self.value)


@pytest.mark.parametrize("change", [("grad_clip", 0.01), ("micro_batch_size", 5)])
def test_another_setting_is_not_replayed_from_the_old_one(pools, change):
    options = {"batches": make_batches(5), "epochs": 3, "callbacks": [Changes(*change)]}
    graphed, plain = (train("cpu", cuda_graph=choice, **options) for choice in ("step", False))
    assert pools == [None, "pool"]
    assert_close(graphed, plain)


class Unfreezes(Callback):
    """Trains a parameter from update 6 on."""

    def on_step_start(self, trainer):
        trainer.model[0].weight.requires_grad_(trainer.step_count >= 6)


def test_a_parameter_may_begin_to_train_later(pools):
    options = {"batches": make_batches(5), "epochs": 3, "callbacks": [Unfreezes()], "muon": False}
    graphed, plain = (train("cpu", cuda_graph=choice, **options) for choice in ("step", False))
    assert len(pools) == 2
    assert_close(graphed, plain)


def test_what_changes_in_every_update_is_warned_of(pools):
    def run(choice):
        model = make_model()
        optimizer = sgd(model)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=16)
        options = {"precision": "fp32", "progress": False, "cuda_graph": choice}
        trainer = Trainer(model, optimizer, schedulers=[scheduler], **options)
        trainer.fit(make_batches(5), 3)
        return trainer

    with pytest.warns(
        RuntimeWarning, match="nothing to replay: momentum of an optimizer changed 10"
    ):
        graphed = run("step")
    assert not pools
    assert_close(graphed, run(False))


class Falling:
    """A scheduler that sets rates as numbers."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["lr"]) * 0.9


def test_a_rate_that_is_set_as_a_number_is_replayed(pools):
    ends = []
    for choice in ("step", False):
        model = make_model()
        optimizer = sgd(model)
        options = {"precision": "fp32", "progress": False, "cuda_graph": choice}
        trainer = Trainer(model, optimizer, schedulers=[Falling(optimizer)], **options)
        trainer.fit(make_batches(5), 3)
        ends.append(trainer)
    assert Graph.replays == 15 - 3
    assert_close(*ends)


@pytest.mark.parametrize("choices", [("step", False), (False, "step")])
def test_a_run_goes_on_with_a_graph_or_without(pools, tmp_path, choices):
    def fit(choice, epochs, **options):
        model = make_model()
        optimizer = sgd(model)
        lr = linear(0.05, 0.0, total_steps=21)
        trainer = Trainer(
            model, optimizer, lr=lr, precision="fp32", progress=False, cuda_graph=choice
        )
        trainer.fit(make_batches(5), epochs, **options)
        return trainer

    first, then = choices
    fit(first, 2, checkpoints=tmp_path)
    resumed = fit(then, 4, checkpoints=tmp_path, resume=True)
    assert isinstance(resumed.optimizers[0].param_groups[0]["lr"], torch.Tensor) == (then == "step")
    assert_close(resumed, fit(False, 4))


@pytest.mark.parametrize("cuda_graph", [True, "step"])
def test_what_is_recorded_beforehand_is_replayed(pools, cuda_graph):
    ends = []
    for choice in (cuda_graph, False):
        model = make_model()
        muon = Muon([model[0].weight], lr=0.02)
        optimizers = [muon, sgd(nn.ModuleList([model[1], model[4]]))]
        lr = linear(0.05, 0.0, total_steps=16)
        options = {"lr": lr, "precision": "fp32", "progress": False, "cuda_graph": choice}
        trainer = Trainer(model, optimizers, **options)
        if choice:
            precompile(trainer, make_batches(1, seed=5))
            assert pools == [None]
            Graph.replays = 0
        trainer.fit(make_batches(5), 3)
        ends.append(trainer)
    assert pools == [None]
    assert Graph.replays == 15
    assert_close(*ends)


def test_a_profile_is_of_the_step_without_its_graph(pools):
    trainer = train("cpu", cuda_graph="step", batches=make_batches(5), epochs=2)
    before, replays = copy.deepcopy(trainer.model.state_dict()), Graph.replays
    profile = profile_steps(trainer, make_batches(3), steps=4)
    assert min(profile.forward, profile.backward, profile.optimizer) > 0
    assert Graph.replays == replays
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_loaded_state_is_not_replayed_from_the_old_one(pools, tmp_path):
    ends = []
    for choice in ("step", False):
        trainer = train("cpu", cuda_graph=choice, batches=make_batches(5), epochs=2)
        path = tmp_path / str(choice)
        trainer.save(path)
        for batch in make_batches(6, seed=9):
            trainer.step(batch)
        trainer.load(path)
        for batch in make_batches(6, seed=8):
            trainer.step(batch)
        ends.append(trainer)
    assert_close(*ends)


def test_the_rates_are_tensors_that_schedules_write(pools):
    trainer = train("cpu", cuda_graph="step", batches=make_batches(5), epochs=2)
    rates = [group["lr"] for one in trainer.optimizers for group in one.param_groups]
    assert all(isinstance(rate, torch.Tensor) and rate.dtype == torch.float32 for rate in rates)
    assert trainer.lr == pytest.approx(0.0, abs=1e-7)
    assert [row["lr"] for row in trainer.history.rows] == pytest.approx([0.03, 0.005])
    assert trainer.describe()["cuda_graph"] == "step"


def test_a_value_read_back_is_an_error(pools, monkeypatch):
    streams = []
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)

    def loss(outputs, targets):
        value = F.cross_entropy(outputs, targets)
        assert value.item() > 0
        return value

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        train("cpu", cuda_graph="step", loss=loss)
    assert len(streams) == 1  # back on the one of before


@pytest.mark.parametrize(
    ("options", "fused", "foreach"),
    [
        ({}, True, False),
        ({"foreach": True}, None, True),
        ({"foreach": False}, None, False),
        ({"fused": False}, False, None),
        ({"differentiable": True}, None, None),
    ],
)
def test_the_fused_update_is_taken_unless_another_was_chosen(options, fused, foreach):
    for dtype in (torch.float32, torch.complex64):
        weight = nn.Parameter(torch.ones(3, dtype=dtype))
        (group,) = torch.optim.Adam([weight], **options).param_groups
        module._switch(group)
        expected = (fused, foreach) if dtype == torch.float32 or options else (None, None)
        assert (group["fused"], group["foreach"]) == expected
        assert group["capturable"]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def momentum_scheduled(model):
    optimizer = sgd(model)
    schedule = linear(0.9, 0.8, total_steps=9)
    return {
        "optimizer": optimizer,
        "schedulers": [ScheduledGroups(optimizer, {"momentum": schedule})],
    }


BAD = [
    (lambda m: {"cuda_graph": "all"}, "cuda_graph must be one of False, True, 'step', got cuda_gr"),
    (
        lambda m: {"compile": "cudagraphs"},
        "a compile that records no graphs itself, got compile='cu",
    ),
    (lambda m: {"nonfinite": "skip"}, "must come with nonfinite='raise', got 'skip', for which"),
    (momentum_scheduled, "must come with schedules of lr alone, got those of momentum"),
    (
        lambda m: {"optimizer": torch.optim.SparseAdam(m.parameters())},
        "needs optimizers whose update can be recorded, .* got SparseAdam; use cuda_graph=True",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_cannot_be_recorded_is_named(pools, options, message):
    model = make_model()
    given = {"optimizer": sgd(model), "cuda_graph": "step", "precision": "fp32", **options(model)}
    with pytest.raises(ValueError, match=message):
        Trainer(model, **given)


def test_fp16_is_for_forward_and_backward_pass_alone():
    with pytest.raises(ValueError, match="precision='bf16' or 'fp32', got 'fp16', whose overflows"):
        module.check_settings([], precision="fp16", nonfinite="raise")


@pytest.mark.parametrize("cuda_graph", [True, "step"])
def test_a_cpu_has_no_graph(cuda_graph):
    model = make_model()
    with pytest.raises(ValueError, match="cuda_graph needs a model on a CUDA device, got 'cpu'"):
        Trainer(model, sgd(model), cuda_graph=cuda_graph)


@pytest.mark.parametrize("kind", ["RMSprop", "Adadelta"])
def test_an_update_that_reads_its_rate_back_is_refused(pools, kind):
    model = make_model()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1, foreach=False)
    with pytest.raises(ValueError, match=f"needs a {kind} that may use foreach, .*=False"):
        Trainer(model, optimizer, cuda_graph="step", precision="fp32", progress=False)
    Trainer(model, optimizer, cuda_graph=True, precision="fp32", progress=False)


def test_adagrad_is_refused_where_this_torch_cannot_fuse_it(pools, monkeypatch):
    model = make_model()
    options = {"cuda_graph": "step", "precision": "fp32", "progress": False}
    Trainer(model, torch.optim.Adagrad(model.parameters()), **options)
    monkeypatch.setattr(module, "_has_fused_adagrad", lambda device: False)
    with pytest.raises(ValueError, match=r"can be recorded, .* got Adagrad; use cuda_graph=True"):
        Trainer(model, torch.optim.Adagrad(model.parameters()), **options)


def test_a_layer_that_is_thawed_is_trained_by_replays(pools):
    models = []
    for choice in (False, "step"):
        model = make_model()
        model[0].requires_grad_(False)
        sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        options = {"precision": "fp32", "progress": False, "cuda_graph": choice}
        trainer = Trainer(model, sgd, **options)
        trainer.fit(make_batches(4), 2)
        model[0].requires_grad_(True)
        trainer.fit(make_batches(4), 3)
        models.append(model)
    assert len(pools) == 2
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
