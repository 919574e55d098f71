"""What is no error and hardly ever meant gives a warning before the run, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fasttricks as ft
from fasttricks.engine import Trainer
from fasttricks.lr_scheduler import ScheduledGroups
from fasttricks.schedules import Schedule, constant, linear, one_cycle, triangular

BATCHES = [(torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 2, 0]))] * 5


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))


def trainer_of(model, optimizer=None, **options):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, optimizer, precision="fp32", progress=False, **options)


def test_a_layer_that_came_after_the_optimizer_is_named():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[2] = nn.Linear(16, 3)
    with pytest.warns(UserWarning, match=r"no optimizer holds the parameters of 2, which") as seen:
        trainer_of(model, optimizer).fit(BATCHES, 1)
    assert seen[0].filename == __file__
    model[2].requires_grad_(False)
    trainer_of(model, optimizer).fit(BATCHES, 1)


def test_an_optimizer_of_another_model_is_named():
    other = torch.optim.SGD(make_model().parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"parameters of 0, 2, which this run"):
        trainer_of(make_model(), other).fit(BATCHES, 1)


def test_a_loss_that_nothing_trains_is_named():
    class Loss(nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.heat = nn.Parameter(torch.ones(()))

        def forward(self, outputs, targets):
            return super().forward(outputs * self.heat, targets)

    with pytest.warns(UserWarning, match="parameters of Loss, which"):
        trainer_of(make_model(), loss=Loss()).fit(BATCHES, 1)


def test_one_parameter_may_be_left_out_by_itself():
    model = make_model()
    few = [one for name, one in model.named_parameters() if name != "2.bias"]
    trainer_of(model, torch.optim.SGD(few, lr=0.1)).fit(BATCHES, 1)


def test_one_schedule_for_groups_of_different_rates_is_named():
    model = make_model()
    groups = ft.parameter_groups(model, lr=0.1, weight_decay=5e-4, bias_lr=6.4)
    with pytest.warns(
        UserWarning, match=r"all groups of SGD, which had 0.1, 6.4; .*Scheduled"
    ) as w:
        trainer_of(model, torch.optim.SGD(groups), lr=constant(0.1))
    assert w[0].filename == __file__
    optimizers = [torch.optim.SGD(model[n].parameters(), lr=n + 1) for n in (0, 2)]
    trainer_of(model, optimizers, lr=constant(0.1))


def test_a_run_beyond_its_schedule_is_named():
    with pytest.warns(UserWarning, match=r"update 5, and the run with update 15: the last 10 "):
        trainer_of(make_model(), lr=one_cycle(0.1, 5)).fit(BATCHES, 3)


def test_a_second_run_on_a_schedule_that_is_used_up_is_named():
    trainer = trainer_of(make_model(), lr=one_cycle(0.1, 10))
    trainer.fit(BATCHES, 2)
    with pytest.warns(UserWarning, match=r"update 10, and the run with update 20: the last 10 "):
        trainer.fit(BATCHES, 2)


@pytest.mark.parametrize(
    "schedule",
    [
        one_cycle(0.1, 10),
        one_cycle(0.1, 100),
        constant(0.1),
        linear(0.1, 0.05, total_steps=4),
        triangular(0.01, 0.1, step_size_up=2),
        linear(0.1, 0.0, total_steps=4).then(constant(0.1), at=4),
    ],
    ids=repr,
)
def test_a_schedule_that_still_trains_at_the_end_is_none_to_warn_of(schedule):
    assert isinstance(schedule, Schedule)
    trainer_of(make_model(), lr=schedule).fit(BATCHES, 2)


def test_a_run_in_pieces_and_one_that_is_resumed_are_within_their_schedule(tmp_path):
    trainer = trainer_of(make_model(), lr=one_cycle(0.1, 20))
    trainer.fit(BATCHES, 2)
    trainer.fit(BATCHES, 2)
    for epochs in (1, 4):
        trainer = trainer_of(make_model(), lr=one_cycle(0.1, 20))
        trainer.fit(BATCHES, epochs, checkpoints=tmp_path, resume=True)
    assert trainer.step_count == 20


def test_only_the_rate_of_groups_that_fade_all_counts():
    model = make_model()
    optimizer = torch.optim.SGD(
        [{"params": part.parameters()} for part in model[::2]], lr=0.1, momentum=0.9
    )
    schedules = {"lr": [linear(0.1, 0.0, total_steps=5), constant(0.1)]}
    trainer_of(model, optimizer, schedulers=[ScheduledGroups(optimizer, schedules)]).fit(BATCHES, 2)
    schedules = {"momentum": linear(0.9, 0.0, total_steps=5)}
    trainer_of(model, optimizer, schedulers=[ScheduledGroups(optimizer, schedules)]).fit(BATCHES, 2)


def test_a_second_trainer_on_a_loader_that_has_grown_is_named():
    images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    data = ft.ImageSet(images, torch.arange(20) % 3, classes=("a", "b", "c"), name="noise")

    def loader_of(*transforms):
        return ft.DeviceLoader(data, batch_size=5, transforms=[*transforms, ft.Normalize(0.5, 0.2)])

    def network():
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))

    growing, plain = loader_of(ft.ProgressiveResize({0: 4, 1: 8})), loader_of()
    for loader in (growing, plain):
        trainer = trainer_of(network())
        trainer.fit(loader, 1)
        trainer.fit(loader, 1)  # which goes on
    trainer_of(network()).fit(plain, 1)
    with pytest.warns(UserWarning, match=r"train stands at its epoch 2, .* train.set_epoch\(0\)"):
        trainer_of(network()).fit(growing, 1)
    growing.set_epoch(0)
    trainer_of(network()).fit(growing, 1)


def test_an_optimizer_that_ends_early_beside_one_that_goes_on_is_none_to_warn_of():
    model = make_model()
    early = torch.optim.SGD(model[0].parameters(), lr=0.1)
    late = torch.optim.SGD(model[2].parameters(), lr=0.1)

    def schedulers(last):
        return [
            ScheduledGroups(early, {"lr": linear(0.1, 0.0, total_steps=3)}),
            ScheduledGroups(late, {"lr": linear(0.1, 0.0, total_steps=last)}),
        ]

    trainer_of(model, [early, late], schedulers=schedulers(10)).fit(BATCHES, 2)
    trainer_of(model, [early, late], schedulers=schedulers(10)[:1]).fit(BATCHES, 2)
    with pytest.warns(UserWarning, match="ends with update 4, and the run with update 10"):
        trainer_of(model, [early, late], schedulers=schedulers(4)).fit(BATCHES, 2)


def test_a_rate_that_ends_before_the_momentum_does_is_named():
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedules = {
        "lr": linear(0.1, 0.0, total_steps=5),
        "momentum": linear(0.9, 0.8, total_steps=10),
    }
    with pytest.warns(UserWarning, match="ends with update 5, and the run with update 10"):
        trainer_of(model, sgd, schedulers=[ScheduledGroups(sgd, schedules)]).fit(BATCHES, 2)


def test_an_average_within_the_loss_is_not_to_train():
    class Distills(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.teacher = torch.optim.swa_utils.AveragedModel(model)

        def forward(self, outputs, targets):
            return nn.functional.cross_entropy(outputs, targets)

    model = make_model()
    trainer_of(model, loss=Distills(model)).fit(BATCHES, 1)
