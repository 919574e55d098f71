from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import re
import weakref
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers

from fasttricks.lr_scheduler import CyclicLR, OneCycleLR, ScheduledGroups
from fasttricks.schedules import (
    Schedule,
    constant,
    cosine,
    exp_range,
    linear,
    one_cycle,
    triangular,
)


def parameter(value=1.0):
    weight = nn.Parameter(torch.full((3,), value))
    weight.grad = torch.ones(3)
    return weight


def sgd(groups=1, **options):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, **options}
    return torch.optim.SGD([{"params": [parameter()]} for _ in range(groups)], **settings)


def adam(groups=1, **options):
    settings = {"lr": 0.1, **options}
    return torch.optim.AdamW([{"params": [parameter()]} for _ in range(groups)], **settings)


def seen(optimizer, name):
    values = [group[name] for group in optimizer.param_groups]
    return [float(value[0] if name == "betas" else value) for value in values]


def trace(optimizer, scheduler, count, names):
    """The entries that each of ``count`` updates uses."""
    rows = []
    for _ in range(count):
        rows.append([value for name in names for value in seen(optimizer, name)])
        optimizer.step()
        scheduler.step()
    return rows


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for row, expected in zip(ours, theirs, strict=True):
        assert row == pytest.approx(expected, rel=1e-12, abs=1e-12)


# ---- ScheduledGroups


def test_update_k_uses_the_values_of_step_k():
    optimizer = sgd()
    lr, decay = one_cycle(0.4, 20), cosine(1e-3, 0.0, total_steps=20)
    scheduler = ScheduledGroups(optimizer, {"lr": lr, "weight_decay": decay})
    rows = trace(optimizer, scheduler, 25, ["lr", "weight_decay"])
    assert rows == [[lr(k), decay(k)] for k in range(25)]


def test_last_epoch_and_last_values_are_those_of_the_coming_update():
    optimizer = sgd()
    lr, momentum = linear(1.0, 0.0, total_steps=5), linear(0.5, 0.9, total_steps=5)
    scheduler = ScheduledGroups(optimizer, {"lr": lr, "momentum": momentum})
    for k in range(5):
        assert scheduler.last_epoch == k
        assert scheduler.last_values() == [{"lr": lr(k), "momentum": momentum(k)}]
        assert scheduler.get_last_lr() == scheduler.get_lr() == [lr(k)]
        assert seen(optimizer, "momentum") == [momentum(k)]
        optimizer.step()
        scheduler.step()
    scheduler.last_values()[0]["lr"] = 7.0
    assert scheduler.last_values()[0]["lr"] == lr(5)


def test_a_list_gives_each_group_its_own_schedule():
    optimizer = sgd(groups=2)
    schedules = [constant(0.3), linear(1.0, 0.0, total_steps=5)]
    scheduler = ScheduledGroups(optimizer, {"lr": schedules, "momentum": constant(0.7)})
    assert trace(optimizer, scheduler, 2, ["lr", "momentum"]) == [
        [0.3, 1.0, 0.7, 0.7],
        [0.3, 0.75, 0.7, 0.7],
    ]


def test_betas_stand_for_the_first_and_keep_the_second():
    optimizer = adam(betas=(0.9, 0.98))
    ScheduledGroups(optimizer, {"betas": constant(0.8)})
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.98)


def test_a_group_added_later_follows_a_schedule_for_all():
    optimizer = sgd()
    scheduler = ScheduledGroups(optimizer, {"lr": linear(1.0, 0.0, total_steps=5)})
    optimizer.add_param_group({"params": [parameter()]})
    optimizer.step()
    scheduler.step()
    assert seen(optimizer, "lr") == [0.75, 0.75]


def test_a_group_added_later_does_not_fit_a_list():
    optimizer = sgd()
    scheduler = ScheduledGroups(optimizer, {"lr": [constant(0.1)]})
    optimizer.add_param_group({"params": [parameter()]})
    with pytest.raises(ValueError, match="got 1 values for 2 groups"):
        scheduler.step()
    assert scheduler.last_epoch == 0


@pytest.mark.parametrize(
    "options",
    [
        {"lr": torch.tensor(0.1)},
        {"lr": torch.tensor(0.1), "fused": True},
        {"lr": 0.1, "fused": True},
        {"lr": 0.1, "foreach": True},
    ],
)
def test_every_kind_of_adam_steps_with_the_scheduled_rate(options):
    optimizer, plain = adam(**options), adam(lr=123.0)
    entry = optimizer.param_groups[0]["lr"]
    schedule = one_cycle(0.4, 10)
    scheduler = OneCycleLR(optimizer, max_lr=0.4, total_steps=10, cycle_momentum=False)
    for k in range(10):
        plain.param_groups[0]["lr"] = schedule(k)
        optimizer.step()
        plain.step()
        scheduler.step()
    if isinstance(entry, torch.Tensor):
        assert optimizer.param_groups[0]["lr"] is entry
    ours, theirs = (o.param_groups[0]["params"][0] for o in (optimizer, plain))
    # a float32 rate and the fused kernel round differently: 1e-6 of a weight of 1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert type(scheduler.get_last_lr()[0]) is float


def test_tensor_betas_are_written_in_place():
    betas = (torch.tensor(0.9), torch.tensor(0.99))
    optimizer = adam(betas=betas, capturable=True, lr=torch.tensor(0.1), foreach=False)
    ScheduledGroups(optimizer, {"betas": constant(0.5)})
    assert optimizer.param_groups[0]["betas"][0] is betas[0]
    assert betas[0].item() == 0.5


@pytest.mark.parametrize("lr", [torch.tensor(0.1), 0.1])
def test_a_tensor_rate_does_not_recompile(lr):
    torch._dynamo.reset()
    compiled = []

    def count(module, _):
        compiled.append(module)
        return module.forward

    optimizer = sgd(lr=lr, momentum=0.0, foreach=False)
    scheduler = ScheduledGroups(optimizer, {"lr": linear(1.0, 0.5, total_steps=9)})

    @torch.compile(backend=count, dynamic=False)
    def update():
        optimizer.step()

    for _ in range(3):
        update()
        scheduler.step()
    # the float rate shows that the count would notice
    assert len(compiled) == 1 if isinstance(lr, torch.Tensor) else len(compiled) > 1
    moved = 1 - sum(linear(1.0, 0.5, total_steps=9)(k) for k in range(3))
    weight = optimizer.param_groups[0]["params"][0]
    torch.testing.assert_close(weight[0].item(), moved, rtol=0, atol=0.01)  # weight decay
    torch._dynamo.reset()


@pytest.mark.cuda
def test_a_capturable_optimizer_and_a_schedule_of_a_step_tensor_work_in_a_graph():
    schedule = one_cycle(0.4, 8)
    weight = nn.Parameter(torch.ones(3, device="cuda"))
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.Adam([weight], lr=torch.tensor(0.1, device="cuda"), capturable=True)
    scheduler = ScheduledGroups(optimizer, {"lr": schedule})
    step, out = torch.zeros((), device="cuda"), torch.zeros((), device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        optimizer.step()
        out.copy_(schedule(step))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
        out.copy_(schedule(step))
    for k in range(8):
        before = weight[0].item()
        step.fill_(k)
        graph.replay()
        assert out.item() == pytest.approx(schedule(k), rel=1e-5)
        # Adam moves by its rate while the gradient stays the same
        assert before - weight[0].item() == pytest.approx(schedule(k), rel=1e-2, abs=1e-6)
        scheduler.step()


def test_the_optimizer_is_left_as_it_was():
    optimizer = sgd()
    ScheduledGroups(optimizer, {"lr": constant(0.1)})
    assert "step" not in vars(optimizer)
    pickle.dumps(optimizer)


def test_a_skipped_update_does_not_warn():
    # warnings are errors here; the scaler skips both updates as the gradients are infinite
    optimizer = sgd()
    scheduler = OneCycleLR(optimizer, max_lr=0.4, total_steps=10)
    scaler = torch.amp.GradScaler("cpu")
    weight = optimizer.param_groups[0]["params"][0]
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale((weight * math.inf).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    assert torch.equal(weight, torch.ones(3))
    assert scheduler.last_epoch == 2


def test_torchs_own_would_warn_on_a_skipped_update():
    scheduler = torch_schedulers.OneCycleLR(sgd(), max_lr=0.4, total_steps=10)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()


# ---- the end


def test_by_default_the_last_value_holds_past_the_end():
    optimizer = sgd()
    scheduler = OneCycleLR(optimizer, max_lr=0.4, total_steps=10)
    rows = trace(optimizer, scheduler, 30, ["lr"])
    assert rows[9:] == [[0.4 / 25 / 1e4]] * 21


def test_total_steps_holds_a_schedule_without_an_end():
    optimizer = sgd()
    schedule = triangular(0.1, 0.4, step_size_up=4)
    scheduler = ScheduledGroups(optimizer, {"lr": schedule}, total_steps=6)
    assert trace(optimizer, scheduler, 9, ["lr"])[5:] == [[schedule(5)]] * 4


def test_raise_stops_after_total_steps_and_names_both_numbers():
    optimizer = sgd()
    scheduler = OneCycleLR(optimizer, max_lr=0.4, total_steps=10, past_end="raise")
    trace(optimizer, scheduler, 10, ["lr"])  # the usual loop, which steps after its last update
    for _ in range(2):
        with pytest.raises(ValueError, match=r"got update 11 and total_steps=10; .*hold"):
            scheduler.step()
    assert scheduler.last_epoch == 10


def test_the_length_is_the_longest_schedules():
    schedules = {"lr": linear(1.0, 0.0, total_steps=5), "momentum": linear(0.5, 0.9, total_steps=9)}
    assert ScheduledGroups(sgd(), schedules).total_steps == 9
    schedules["weight_decay"] = exp_range(0.0, 1.0, step_size_up=3)
    assert not hasattr(ScheduledGroups(sgd(), schedules), "total_steps")


# ---- torch's own as the reference


@pytest.mark.parametrize("make", [sgd, adam])
@settings(deadline=None, max_examples=15)
@given(
    total=st.integers(2, 120),
    pct_start=st.floats(0.05, 0.5),
    anneal_strategy=st.sampled_from(["cos", "linear"]),
    three_phase=st.booleans(),
    max_lr=st.lists(st.floats(1e-3, 5.0), min_size=2, max_size=2),
)
def test_one_cycle_lr_equals_torchs(make, total, max_lr, **options):
    assume(options["pct_start"] * total > 1)
    options = {"max_lr": max_lr, "total_steps": total, "base_momentum": [0.8, 0.7], **options}
    names = ["lr", "momentum" if make is sgd else "betas"]
    runs = []
    for kind in (OneCycleLR, torch_schedulers.OneCycleLR):
        optimizer = make(groups=2)
        runs.append(trace(optimizer, kind(optimizer, **options), total, names))
    assert_equal(*runs)


@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize("cycle_momentum", [True, False])
@pytest.mark.parametrize("down", [None, 9])
def test_cyclic_lr_equals_torchs(make, mode, cycle_momentum, down):
    options = {"mode": mode, "cycle_momentum": cycle_momentum, "gamma": 0.98}
    options |= {"step_size_up": 6, "step_size_down": down}
    names = ["lr", "momentum" if make is sgd else "betas"]
    runs = []
    for kind in (CyclicLR, torch_schedulers.CyclicLR):
        optimizer = make(groups=2)
        scheduler = kind(optimizer, [0.1, 0.2], [0.4, 0.5], **options)
        runs.append(trace(optimizer, scheduler, 60, names))
    assert_equal(*runs)


def test_the_length_may_be_given_as_epochs():
    scheduler = OneCycleLR(sgd(), 0.4, epochs=3, steps_per_epoch=7)
    assert scheduler.total_steps == 21


def test_it_is_a_torch_scheduler():
    assert isinstance(OneCycleLR(sgd(), 0.4, 10), torch_schedulers.LRScheduler)


def test_sequential_lr_runs_one_after_the_other():
    optimizer = sgd()
    first = ScheduledGroups(optimizer, {"lr": linear(0.0, 1.0, total_steps=4)})
    second = OneCycleLR(optimizer, max_lr=0.4, total_steps=8)
    third = torch_schedulers.ConstantLR(optimizer, factor=0.5, total_iters=100)
    joined = torch_schedulers.SequentialLR(optimizer, [first, second, third], milestones=[4, 12])
    assert joined.get_last_lr() == [0.0]
    rows = trace(optimizer, joined, 14, ["lr"])
    cycle = one_cycle(0.4, 8)
    expected = [k / 3 for k in range(4)] + [cycle(k) for k in range(8)]
    assert [row[0] for row in rows[:12]] == pytest.approx(expected, rel=1e-12)
    # a torch scheduler starts from the value that it finds
    assert rows[13] == rows[12]


def test_sequential_lr_resumes_where_a_torch_scheduler_is_at_work():
    def build():
        optimizer = sgd()
        parts = [
            ScheduledGroups(optimizer, {"lr": linear(0.0, 1.0, total_steps=4)}),
            torch_schedulers.ExponentialLR(optimizer, gamma=0.9),
        ]
        return optimizer, torch_schedulers.SequentialLR(optimizer, parts, milestones=[4])

    optimizer, joined = build()
    trace(optimizer, joined, 6, ["lr"])
    states = copy.deepcopy((optimizer.state_dict(), joined.state_dict()))
    expected = trace(optimizer, joined, 5, ["lr"])
    optimizer, joined = build()
    optimizer.load_state_dict(states[0])
    joined.load_state_dict(states[1])
    assert trace(optimizer, joined, 5, ["lr"]) == expected


def test_a_step_may_be_named_as_older_sequential_lr_does():
    optimizer = sgd()
    scheduler = OneCycleLR(optimizer, max_lr=0.4, total_steps=8)
    trace(optimizer, scheduler, 3, ["lr"])
    scheduler.step(0)
    assert (scheduler.last_epoch, seen(optimizer, "lr")) == (0, [0.4 / 25])


def test_chained_scheduler_drives_both():
    optimizer = sgd()
    rate, decay = linear(1.0, 0.0, total_steps=5), linear(0.1, 0.0, total_steps=5)
    parts = [
        ScheduledGroups(optimizer, {"lr": rate}),
        ScheduledGroups(optimizer, {"weight_decay": decay}),
    ]
    chained = torch_schedulers.ChainedScheduler(parts, optimizer)
    rows = trace(optimizer, chained, 5, ["lr", "weight_decay"])
    assert rows == [[rate(k), decay(k)] for k in range(5)]
    assert parts[1].get_last_lr() == [rate(5)]


# ---- state


def build(total=40, **options):
    optimizer = sgd(groups=2)
    return optimizer, OneCycleLR(optimizer, max_lr=[0.4, 0.2], total_steps=total, **options)


def test_the_state_is_small_and_plain():
    state = build()[1].state_dict()
    assert set(state) == {"last_epoch", "total_steps", "schedules", "in_force"}
    assert (state["last_epoch"], state["total_steps"]) == (0, 40)
    assert len(pickle.dumps(state)) < 500
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == state


@settings(deadline=None, max_examples=15)
@given(stop=st.integers(0, 45), optimizer_first=st.booleans())
def test_resuming_anywhere_gives_the_uninterrupted_values(stop, optimizer_first):
    optimizer, scheduler = build()
    expected = trace(optimizer, scheduler, 45, ["lr", "momentum"])
    optimizer, scheduler = build()
    rows = trace(optimizer, scheduler, stop, ["lr", "momentum"])
    states = copy.deepcopy([optimizer.state_dict(), scheduler.state_dict()])
    optimizer, scheduler = build()
    pairs = list(zip([optimizer, scheduler], states, strict=True))
    for thing, state in pairs if optimizer_first else reversed(pairs):
        thing.load_state_dict(state)
    assert rows + trace(optimizer, scheduler, 45 - stop, ["lr", "momentum"]) == expected


@pytest.mark.parametrize("stop", [510, 511, 512, 513, 1400])
def test_long_runs_follow_the_schedule_and_resume_anywhere(stop):
    schedule = one_cycle(0.4, total_steps=1500)
    optimizer = sgd()
    scheduler = ScheduledGroups(optimizer, {"lr": schedule})
    rates, state = [], {}
    for update in range(1500):
        if update == stop:
            state = scheduler.state_dict()
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert rates == pytest.approx([schedule(step) for step in range(1500)], rel=1e-15)
    resumed = sgd()
    other = ScheduledGroups(resumed, {"lr": schedule})
    other.load_state_dict(state)
    for update in range(stop, 1500):
        assert resumed.param_groups[0]["lr"] == rates[update]
        other.step()


def test_equal_schedules_are_evaluated_once_whatever_the_number_of_groups():
    calls = []

    @dataclass(frozen=True, repr=False)
    class Counting(Schedule):
        value: float

        def _value(self, step):
            calls.append(self.value)
            return step * 0 + self.value

    optimizer = sgd(groups=3)
    ScheduledGroups(optimizer, {"lr": [Counting(0.1), Counting(0.2), Counting(0.1)]})
    assert seen(optimizer, "lr") == [0.1, 0.2, 0.1]
    assert sorted(calls) == [0.1, 0.2]


@pytest.mark.parametrize("epoch", [-1, 1.5, True])
def test_an_update_that_cannot_be_is_named(epoch):
    scheduler = ScheduledGroups(sgd(), {"lr": constant(0.1)})
    with pytest.raises((TypeError, ValueError), match="epoch must be"):
        scheduler.step(epoch)


def test_resuming_sets_the_values_even_if_the_optimizer_was_loaded_before_construction():
    optimizer, scheduler = build()
    trace(optimizer, scheduler, 12, ["lr"])
    rates, state = seen(optimizer, "lr"), scheduler.state_dict()
    optimizer, scheduler = build()
    scheduler.load_state_dict(state)
    assert seen(optimizer, "lr") == rates


def test_resuming_works_with_tensor_rates():
    def build():
        optimizer = adam(lr=torch.tensor(0.1))
        return optimizer, CyclicLR(optimizer, 0.1, 0.4, step_size_up=5, mode="exp_range", gamma=0.9)

    optimizer, scheduler = build()
    expected = trace(optimizer, scheduler, 20, ["lr", "betas"])
    optimizer, scheduler = build()
    trace(optimizer, scheduler, 7, ["lr"])
    state = scheduler.state_dict()
    assert state["in_force"] is True
    optimizer, scheduler = build()
    scheduler.load_state_dict(state)
    assert trace(optimizer, scheduler, 13, ["lr", "betas"]) == expected[7:]


def test_last_epoch_starts_later_without_initial_lr():
    optimizer, scheduler = build()
    expected = trace(optimizer, scheduler, 20, ["lr", "momentum"])
    optimizer, scheduler = build(last_epoch=11)
    assert scheduler.last_epoch == 12
    assert trace(optimizer, scheduler, 8, ["lr", "momentum"]) == expected[12:]


def test_another_length_is_refused_unless_allowed():
    state = build(total=40)[1].state_dict() | {"last_epoch": 30}
    optimizer, scheduler = build(total=60)
    message = "got total_steps=60 and saved total_steps=40; .*allow_changes=True"
    with pytest.raises(ValueError, match=message):
        scheduler.load_state_dict(state)
    assert scheduler.last_epoch == 0
    scheduler.load_state_dict(state, allow_changes=True)
    assert scheduler.last_epoch == 30
    assert seen(optimizer, "lr") == [one_cycle(0.4, 60)(30), one_cycle(0.2, 60)(30)]


def test_another_schedule_is_refused_by_name():
    state = ScheduledGroups(sgd(), {"lr": constant(0.1)}).state_dict()
    other = ScheduledGroups(sgd(), {"lr": constant(0.2)})
    message = "got lr=constant(value=0.2) and saved lr=constant(value=0.1)"
    with pytest.raises(ValueError, match=re.escape(message)):
        other.load_state_dict(state)
    more = ScheduledGroups(sgd(), {"lr": constant(0.1), "momentum": constant(0.5)})
    with pytest.raises(ValueError, match="saved momentum=None"):
        more.load_state_dict(state)
    with pytest.raises(ValueError, match="got momentum=None"):
        ScheduledGroups(sgd(), {"lr": constant(0.1)}).load_state_dict(more.state_dict())


def test_a_state_without_a_position_is_refused():
    with pytest.raises(ValueError, match=r"must hold last_epoch, got the keys \['step'\]"):
        build()[1].load_state_dict({"step": 3}, allow_changes=True)


def test_the_scheduler_itself_pickles_and_copies():
    optimizer, scheduler = build()
    trace(optimizer, scheduler, 5, ["lr"])
    for twin in (pickle.loads(pickle.dumps(scheduler)), copy.deepcopy(scheduler)):
        assert twin.last_values() == scheduler.last_values()
        twin.step()
        assert seen(twin.optimizer, "lr") != seen(optimizer, "lr")


@pytest.mark.parametrize(
    "make", [lambda o: OneCycleLR(o, 0.4, 10), lambda o: CyclicLR(o, 0.1, 0.4, mode="exp_range")]
)
def test_optimizer_and_scheduler_are_freed_without_the_garbage_collector(make):
    gc.collect()
    gc.disable()
    try:
        optimizer = sgd()
        scheduler = make(optimizer)
        optimizer.step()
        scheduler.step()
        alive = [weakref.ref(optimizer), weakref.ref(scheduler)]
        alive.append(weakref.ref(optimizer.param_groups[0]["params"][0]))
        del optimizer, scheduler
        assert [reference() for reference in alive] == [None, None, None]
    finally:
        gc.enable()


# ---- bad input

BAD = [
    (lambda: ScheduledGroups(adam(), {"momentum": constant(0.9)}),
     "schedules must name entries of every group, got 'momentum', which group 0 lacks (it has lr"),
    (lambda: ScheduledGroups(sgd(), {"nesterov": constant(0.9)}),
     "schedules must name numeric entries, got 'nesterov', which is False in group 0"),
    (lambda: ScheduledGroups(sgd(), {}),
     "schedules must name at least one entry, got schedules={}"),
    (lambda: ScheduledGroups(sgd(groups=2), {"lr": [constant(0.1)] * 3}),
     "schedules['lr'] must hold one value per group, got 3 values for 2 groups"),
    (lambda: ScheduledGroups(sgd(), {"lr": triangular(0, 1, step_size_up=3)}, past_end="raise"),
     'past_end="raise" needs an end'),
    (lambda: ScheduledGroups(sgd(), {"lr": constant(0.1)}, past_end="wrap"),
     "past_end must be one of 'hold', 'raise', got past_end='wrap'"),
    (lambda: ScheduledGroups(sgd(), {"lr": constant(0.1)}, total_steps=0),
     "total_steps must be at least 1, got total_steps=0"),
    (lambda: ScheduledGroups(sgd(), {"lr": constant(0.1)}, last_epoch=-2),
     "last_epoch must be at least -1, got last_epoch=-2"),
    (lambda: CyclicLR(sgd(), 0.4, 0.1),
     "max_lr must be greater than base_lr, got max_lr=0.1 and base_lr=0.4"),
    (lambda: CyclicLR(sgd(), 0.1, 0.4, mode="saw"), "got mode='saw'"),
    (lambda: CyclicLR(sgd(), 0.1, 0.4, base_momentum=-1),
     "base_momentum must be between 0 and 1, got base_momentum=-1"),
    (lambda: CyclicLR(torch.optim.Adagrad([parameter()]), 0.1, 0.4),
     "cycle_momentum needs an optimizer with momentum or betas, "
     "got cycle_momentum=True and Adagrad"),
    (lambda: OneCycleLR(sgd(), -0.4, 10), "max_lr must be greater than 0, got max_lr=-0.4"),
    (lambda: OneCycleLR(sgd(), [0.4, 0.2], 10),
     "max_lr must hold one value per group, got 2 values for 1 groups"),
    (lambda: OneCycleLR(sgd(), 0.4, 0), "total_steps must be at least 1, got total_steps=0"),
    (lambda: OneCycleLR(sgd(), 0.4, epochs=3),
     "total_steps must be given, or both epochs and steps_per_epoch, got total_steps=None, "
     "epochs=3 and steps_per_epoch=None"),
    (lambda: OneCycleLR(sgd(), 0.4, epochs=0, steps_per_epoch=5),
     "epochs must be at least 1, got epochs=0"),
    (lambda: OneCycleLR(sgd(), 0.4, 10, pct_start=1.5), "got pct_start=1.5"),
    (lambda: OneCycleLR(sgd(), 0.4, 10, anneal_strategy="cosine"),
     "anneal_strategy must be one of 'cos', 'linear', got anneal_strategy='cosine'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_values_are_refused_by_name_and_number(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_refusals_leave_the_groups_alone():
    optimizer = sgd()
    before = dict(optimizer.param_groups[0])
    with pytest.raises(ValueError, match="lacks"):
        ScheduledGroups(optimizer, {"lr": constant(0.7), "beta": constant(0.5)})
    assert optimizer.param_groups[0] == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ScheduledGroups(nn.Linear(1, 1), {"lr": constant(0.1)}), "got Linear"),
        (lambda: ScheduledGroups(sgd(), {"lr": 0.1}), r"\['lr'\] must be a Schedule .*got 0.1"),
        (lambda: OneCycleLR(nn.Linear(1, 1), 0.1, 5), "optimizer must be an Optimizer, got Linear"),
    ],
)
def test_wrong_types_are_refused_by_name(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_the_text_names_the_optimizer_and_the_schedules():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = ScheduledGroups(optimizer, {"lr": linear(0.5, 0.0, total_steps=4)})
    assert repr(scheduler) == f"ScheduledGroups(SGD, {{'lr': {linear(0.5, 0.0, total_steps=4)!r}}})"


@pytest.mark.parametrize(
    ("schedule", "count"),
    [(linear(1.0, 0.0, total_steps=3), 4), (triangular(0.1, 0.4, step_size_up=4), 6)],
)
def test_wrappers_that_look_at_torchs_own_names_find_them(schedule, count):
    """As Accelerate's does, which leaves out what lies past the end."""
    scheduler = ScheduledGroups(sgd(), {"lr": schedule})
    for _ in range(5):
        if not hasattr(scheduler, "total_steps") or (
            scheduler._step_count <= scheduler.total_steps
        ):
            scheduler.step()
    assert scheduler._step_count == scheduler.last_epoch + 1 == count


def test_a_schedule_without_a_name_is_no_dict():
    with pytest.raises(
        TypeError, match=r"schedules must be a dict by name, .* got schedules=one_cy"
    ):
        ScheduledGroups(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), one_cycle(0.1, 5))


def test_groups_that_share_a_tensor_get_one_each():
    rate = torch.tensor(0.1)
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    sgd = torch.optim.SGD([{"params": [weight], "lr": rate} for weight in weights], lr=rate)
    scheduler = ScheduledGroups(sgd, {"lr": [constant(0.5), constant(0.25)]})
    assert [group["lr"].item() for group in sgd.param_groups] == [0.5, 0.25]
    assert scheduler.get_last_lr() == [0.5, 0.25]
    scheduler.step()
    assert [group["lr"].item() for group in sgd.param_groups] == [0.5, 0.25]


def test_groups_that_come_to_share_a_tensor_again_are_parted_again():
    rate = torch.tensor(0.1)
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    sgd = torch.optim.SGD([{"params": [weight], "lr": rate} for weight in weights], lr=rate)
    saved = copy.deepcopy(sgd.state_dict())
    scheduler = ScheduledGroups(sgd, {"lr": [constant(0.5), constant(0.25)]})
    sgd.load_state_dict(saved)
    scheduler.step()
    assert [group["lr"].item() for group in sgd.param_groups] == [0.5, 0.25]


def test_groups_that_share_betas_get_a_pair_each():
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    betas = (torch.tensor(0.9), torch.tensor(0.99))
    groups = [{"params": [weight]} for weight in weights]
    adam = torch.optim.AdamW(groups, lr=0.1, betas=betas, foreach=False)
    ScheduledGroups(adam, {"betas": [constant(0.5), constant(0.25)]})
    assert [group["betas"][0].item() for group in adam.param_groups] == [0.5, 0.25]
