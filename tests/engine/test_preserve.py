"""preserve_training_state: after a block of training everything is what it was, byte for byte."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from heated_loss import Heated
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fasttricks as ft
from fasttricks.engine import preserve_training_state


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, updates: int = 2) -> Tensor:
    """Train on random images and return the sum of the losses."""
    total = torch.zeros(())
    for _ in range(updates):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 3, 8, 8)).square().mean()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return total


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for index, own in optimizer.state_dict()["state"].items():
        state |= {f"{index}.{name}": torch.as_tensor(v).clone() for name, v in own.items()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            state[f"{name}.grad"] = parameter.grad.clone()
    return state


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class Centred(nn.Module):
    """Puts another tensor in its buffer's place, as the centre of DINO's loss is kept."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(3))
        self.register_buffer("seen", None)
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        self.center = 0.9 * self.center + 0.1 * x.detach().mean(0)
        self.seen = x.detach().abs().amax(0)
        return self.linear(x - self.center)


def test_buffers_in_whose_place_others_were_put_are_put_back():
    model = Centred()
    center = model.center
    with preserve_training_state(model, [torch.optim.SGD(model.parameters(), lr=0.1)]):
        model(torch.ones(4, 3))
        model.center.add_(1)
    assert model.center is center
    assert model.center.tolist() == [0, 0, 0]
    assert model.seen is None


def test_an_update_left_out_leaves_such_buffers_as_they_were():
    model = Centred()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"nonfinite": "skip", "precision": "fp32", "progress": False}
    trainer = ft.Trainer(model, sgd, **options)
    batches = [(torch.full((4, 3), value), torch.tensor([0, 1, 0, 1])) for value in (1.0, 2.0)]
    broken = (torch.full((4, 3), torch.nan), torch.tensor([0, 1, 0, 1]))
    trainer.fit([batches[0], broken, batches[1]], 1)
    assert trainer.nonfinite_steps == 1
    torch.testing.assert_close(model.center, torch.full((3,), 0.9 * 0.1 + 0.1 * 2))


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adagrad", "RMSprop"])
@pytest.mark.parametrize("used", [False, True])
def test_weights_statistics_gradients_and_optimizer_are_put_back(name, used):
    model = make_model()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01)
    if used:
        train(model, optimizer)
    before = everything(model, optimizer)
    groups = optimizer.state_dict()["param_groups"]
    with preserve_training_state(model, [optimizer]):
        train(model, optimizer)
        optimizer.param_groups[0]["lr"] = 3.0
        assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert_equal(before, everything(model, optimizer))
    assert optimizer.state_dict()["param_groups"] == groups


def test_training_goes_on_as_if_nothing_had_been():
    def losses(interrupted: bool) -> Tensor:
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        first = train(model, optimizer)
        if interrupted:
            with preserve_training_state(model, [optimizer]):
                train(model, optimizer, 3)
        return torch.stack([first, train(model, optimizer)])

    assert torch.equal(losses(False), losses(True))


def test_references_to_tensors_stay_good():
    model = make_model()
    rate = torch.tensor(0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    train(model, optimizer)
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    with preserve_training_state(model, [optimizer]):
        train(model, optimizer)
        rate.fill_(5.0)
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    assert all(p.grad is old for p, old in zip(parameters, gradients, strict=True))
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.01)


def test_flags_are_put_back():
    model = make_model()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with preserve_training_state(model, [optimizer]):
        model.train().requires_grad_(True)
    assert [module.training for module in model] == [True, False, True, True]
    assert not model[0].bias.requires_grad
    assert model[0].weight.requires_grad


def test_random_states_are_put_back():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), random.random(), float(np.random.rand())  # noqa: NPY002

    state = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with preserve_training_state(model, [optimizer]):
            inside = draw()
        assert draw() == inside
    finally:
        torch.set_rng_state(state[0])
        random.setstate(state[1])
        np.random.set_state(state[2])  # noqa: NPY002


def test_a_data_loader_begins_where_it_was():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.arange(16))
    loader = DataLoader(data, batch_size=4, shuffle=True, generator=generator)
    with preserve_training_state(model, [optimizer], loader):
        inside = [batch.tolist() for (batch,) in loader]
    assert [batch.tolist() for (batch,) in loader] == inside


def test_a_device_loader_begins_where_it_was():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    image_set = ft.ImageSet(images, torch.arange(8) % 2, classes=("a", "b"), name="black")
    loader = ft.DeviceLoader(image_set, batch_size=4, shuffle=True, device="cpu")
    loader.set_epoch(3)
    with preserve_training_state(model, [optimizer], loader):
        list(loader)
        list(loader)
    assert loader.epoch == 3


def test_the_scale_of_fp16_is_put_back():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    precision = ft.Precision("fp32")  # with a scaler, as fp16 has, which runs on the CPU as well
    precision._scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = precision.state_dict()
    with preserve_training_state(model, [optimizer], precision=precision):
        precision.backward(model[3].bias.sum() * torch.inf)
        assert not precision.step([optimizer])
        assert precision.state_dict() != before
    assert precision.state_dict() == before


def test_an_error_in_the_block_leaves_no_trace_and_is_passed_on():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = everything(model, optimizer)

    def fail() -> None:
        with preserve_training_state(model, [optimizer]):
            train(model, optimizer)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert_equal(before, everything(model, optimizer))


@pytest.mark.parametrize(
    "trial",
    [
        lambda trainer, batches: ft.lr_range_test(trainer, loader=batches, num_steps=20),
        lambda trainer, batches: ft.find_batch_size(trainer, batches[0], max_batch_size=16),
        lambda trainer, batches: ft.profile_steps(trainer, batches, steps=1, warmup=0),
        lambda trainer, batches: ft.precompile(trainer, batches),
    ],
    ids=["range test", "batch size", "profile", "precompile"],
)
def test_trials_leave_no_trace_on_a_loss_that_is_trained(trial):
    model, loss = make_model(), Heated()
    trained = [*model.parameters(), *loss.parameters()]
    sgd = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
    trainer = ft.Trainer(model, sgd, loss=loss, precision="fp32", progress=False)
    trial(trainer, [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))] * 2)
    assert loss.heat.item() == loss.calls.item() == 0
    assert loss.heat.grad is None
