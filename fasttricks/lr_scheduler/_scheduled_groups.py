"""Any schedules on any numeric entries of an optimizer's groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fasttricks._checks import check_choice, check_integer
from fasttricks.schedules import Schedule

_BLOCK = 512  # updates


class ScheduledGroups(LRScheduler):
    """Drive any numeric entries of an optimizer's groups by schedules.

    Entries that are tensors are written in place, so compiled optimizers see no new object.
    ``"betas"`` stands for its first number, Adam's momentum. The optimizer is not patched and holds
    no reference to this object, and no call warns: on a skipped update (gradient scaling) call
    ``step()`` or leave it out, as you count updates. Works within torch's ``SequentialLR`` and
    ``ChainedScheduler``.

    Args:
        optimizer: The optimizer whose groups are driven.
        schedules: For each entry's name a schedule for all groups, or a list with one per group.
        total_steps: Number of updates, at least 1; by default the longest schedule's, or none if
            one has no end.
        past_end: What ``step()`` does beyond ``total_steps`` updates: ``"hold"`` the last value or
            ``"raise"``. The call after the last update, which prepares an update that never comes,
            always holds.
        last_epoch: The last update done, to start later than at update 0; default -1.

    Raises:
        TypeError: If ``optimizer`` or a schedule is of another kind.
        ValueError: If a group lacks a named entry or it is no number, a list does not fit the
            groups, or ``past_end="raise"`` has no end to go by.

    Example:
        >>> import torch
        >>> from fasttricks.schedules import linear, one_cycle
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        >>> scheduler = ScheduledGroups(
        ...     optimizer,
        ...     {"lr": one_cycle(0.4, 10), "momentum": linear(0.95, 0.85, total_steps=10)},
        ... )
        >>> scheduler.last_values()
        [{'lr': 0.016, 'momentum': 0.95}]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedules: Mapping[str, Schedule | Sequence[Schedule]],
        *,
        total_steps: int | None = None,
        past_end: Literal["hold", "raise"] = "hold",
        last_epoch: int = -1,
    ) -> None:
        # The base constructor is left out: all it would add is a wrapper around optimizer.step, for
        # a warning that gradient scaling sets off wrongly, and a KeyError when resuming.
        _check_schedules(schedules, optimizer)
        check_choice("past_end", past_end, ("hold", "raise"))
        check_integer("last_epoch", last_epoch, minimum=-1)
        self.schedules = {
            name: given if isinstance(given, Schedule) else tuple(given)
            for name, given in schedules.items()
        }
        every = [one for given in self.schedules.values() for one in as_list(given)]
        self._total = longest(every) if total_steps is None else total_steps
        if self._total is not None:
            # Without an end there is no such attribute, as in torch: others look for it.
            self.total_steps = check_integer("total_steps", self._total, minimum=1)
        elif past_end == "raise":
            raise ValueError(
                'past_end="raise" needs an end, got schedules without one; pass total_steps'
            )
        self.past_end = past_end
        self.optimizer = optimizer
        self._groups_parted: object = None
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", _copy(group["lr"]))  # SequentialLR starts from it
        self.base_lrs = [_copy(group["initial_lr"]) for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._make_plan()
        self._initial_step()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.optimizer).__name__}, {self.schedules!r})"

    def _initial_step(self) -> None:
        self.step()

    def step(self, epoch: int | None = None) -> None:
        """Set the values of the next update; call it once after each ``optimizer.step()``.

        Args:
            epoch: The update whose values to set, counted from 0; by default the one after
                ``last_epoch``.

        Raises:
            ValueError: With ``past_end="raise"``, beyond ``total_steps`` updates.
        """
        if epoch is None:
            update = self.last_epoch + 1
        else:
            check_integer("epoch", epoch)
            update = epoch
        values = self._values_at(update)
        # Read anew at every step: load_state_dict of the optimizer makes new groups.
        groups = self.optimizer.param_groups
        if groups is not self._groups_parted:
            _part_shared_entries(groups, self.schedules)
            self._groups_parted = groups
        for (name, _, indices), value in zip(self._plan, values, strict=True):
            for index in indices:
                group = groups[index]
                if type(group[name]) is float:
                    group[name] = value
                else:
                    _write(group, name, value)
        self._go_to(update, values)

    def _update_lr(self, epoch: int | None = None) -> None:
        # Newer torch's SequentialLR calls this where older torch called step(0).
        self.step(epoch)

    def last_values(self) -> list[dict[str, float]]:
        """Return per group the values in force for update ``last_epoch``, as floats by name."""
        return self._by_group(self._last)

    def get_lr(self) -> list[float | Tensor]:
        """Return each group's rate at ``last_epoch``."""
        return self._rates(self._by_group(self._values_at(self.last_epoch)))

    def get_last_lr(self) -> list[float | Tensor]:
        """Return each group's rate as last set, as a float even where the group holds a tensor.

        If no schedule drives ``"lr"``, the group's present rate.
        """
        return self._rates(self.last_values())

    def state_dict(self) -> dict[str, Any]:
        """Return the position and what tells one plan from another: numbers and text only."""
        return {
            "last_epoch": self.last_epoch,
            "total_steps": self._total,
            "schedules": self._texts(),
            "in_force": self._in_force(),
        }

    def load_state_dict(self, state_dict: dict[str, Any], *, allow_changes: bool = False) -> None:
        """Go to the saved position and set its values.

        Args:
            state_dict: What :meth:`state_dict` returned.
            allow_changes: Whether the schedules or ``total_steps`` may differ from the saved ones;
                the position is then kept and the new schedules hold from there.

        Raises:
            ValueError: If the state has no position, or another plan and ``allow_changes`` is
                False.
        """
        self.check_state_dict(state_dict, allow_changes=allow_changes)
        update = state_dict["last_epoch"]
        # In a SequentialLR another scheduler may be the one whose values are in the groups.
        if state_dict.get("in_force", True):
            self.step(update)
        else:
            self._go_to(update, self._values_at(update))

    def check_state_dict(self, state_dict: dict[str, Any], *, allow_changes: bool = False) -> None:
        """Raise what ``load_state_dict`` would, and change nothing."""
        if "last_epoch" not in state_dict:
            raise ValueError(f"state_dict must hold last_epoch, got the keys {list(state_dict)}")
        if not allow_changes:
            self._check_same(state_dict)

    def _go_to(self, update: int, values: Sequence[float]) -> None:
        self.last_epoch, self._last = update, values
        self._step_count = update + 1  # torch's name, which wrappers such as Accelerate's read

    def _make_plan(self) -> None:
        """List what to evaluate and where it goes, so that equal schedules are evaluated once."""
        self._groups_planned = len(self.optimizer.param_groups)
        plan: dict[tuple[str, Schedule], list[int]] = {}
        for name, given in self.schedules.items():
            each = per_group(f"schedules[{name!r}]", given, self._groups_planned)
            for index, schedule in enumerate(each):
                plan.setdefault((name, schedule), []).append(index)
        self._plan = [(name, schedule, indices) for (name, schedule), indices in plan.items()]
        self._block: int | None = None

    def _values_at(self, update: int) -> Sequence[float]:
        """Return the values of an update, in the order of the plan."""
        if len(self.optimizer.param_groups) != self._groups_planned:
            self._make_plan()
        total = self._total
        if total is not None and update >= total:
            self._check_end(update)
            update = total - 1
        block, row = divmod(update, _BLOCK)
        if block != self._block:
            # Many updates at a time cost little more than one. Blocks lie where they lie in every
            # run, so that one that resumes within a block sees the same numbers.
            steps = torch.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=torch.float64)
            columns = [schedule(steps).tolist() for _, schedule, _ in self._plan]
            self._table = list(zip(*columns, strict=True))
            self._block = block
        return self._table[row]

    def _by_group(self, values: Sequence[float]) -> list[dict[str, float]]:
        groups: list[dict[str, float]] = [{} for _ in range(self._groups_planned)]
        for (name, _, indices), value in zip(self._plan, values, strict=True):
            for index in indices:
                groups[index][name] = value
        return groups

    def _in_force(self) -> bool:
        """Whether the groups hold what this scheduler set last."""
        return all(
            _holds(_entry(group, name), value)
            for group, values in zip(self.optimizer.param_groups, self.last_values(), strict=False)
            for name, value in values.items()
        )

    def _rates(self, values: list[dict[str, float]]) -> list[float | Tensor]:
        groups = self.optimizer.param_groups
        return [
            group_values["lr"] if "lr" in group_values else _copy(group["lr"])
            for group, group_values in zip(groups, values, strict=False)
        ]

    def _texts(self) -> dict[str, str | list[str]]:
        texts: dict[str, str | list[str]] = {}
        for name, given in self.schedules.items():
            each = [repr(one) for one in as_list(given)]
            texts[name] = each if len(set(each)) > 1 else each[0]
        return texts

    def _check_end(self, update: int) -> None:
        if self.past_end == "raise" and self._total is not None and update > self._total:
            raise ValueError(
                f"step() must not go past total_steps, got update {update} and "
                f'total_steps={self._total}; pass past_end="hold" to keep the last value'
            )

    def _check_same(self, state: dict[str, Any]) -> None:
        saved = {"total_steps": state.get("total_steps"), **(state.get("schedules") or {})}
        mine = {"total_steps": self._total, **self._texts()}
        for name in [*mine, *(saved.keys() - mine.keys())]:
            old, new = saved.get(name), mine.get(name)
            if old != new:
                raise ValueError(
                    f"{name} must be the saved one, got {name}={new} and saved {name}={old}; "
                    "allow it by allow_changes=True, which Trainer.load takes too"
                )


def as_list(given: Schedule | Sequence[Schedule]) -> list[Schedule]:
    """Return the one schedule of all groups, or those of each, as a list."""
    return [given] if isinstance(given, Schedule) else list(given)


def longest(schedules: Iterable[Schedule]) -> int | None:
    """Return the longest length, or None if one has no end."""
    lengths = [schedule.length for schedule in schedules]
    known = [length for length in lengths if length is not None]
    return max(known) if len(known) == len(lengths) else None


def _part_shared_entries(groups: Sequence[dict[str, Any]], names: Iterable[str]) -> None:
    """Give each group a tensor of its own; torch puts one rate given as a tensor into all."""
    for name in names:
        seen: set[int] = set()
        for group in groups:
            entry = _entry(group, name)
            if isinstance(entry, Tensor) and id(entry) in seen:
                own = entry.clone()
                group[name] = (own, *group[name][1:]) if name == "betas" else own
            seen.add(id(_entry(group, name)))


def _copy(entry: Any) -> Any:
    return entry.clone() if isinstance(entry, Tensor) else entry


def _entry(group: dict[str, Any], name: str) -> Any:
    """Return the number that a name stands for: the entry, or the first of the betas."""
    return group[name][0] if name == "betas" else group[name]


def _write(group: dict[str, Any], name: str, value: float) -> None:
    """Set an entry, a tensor in place; of the betas the first."""
    entry = _entry(group, name)
    if isinstance(entry, Tensor):
        entry.fill_(value)
    elif name == "betas":
        group[name] = (value, *group[name][1:])
    else:
        group[name] = value


def group_count(optimizer: Optimizer) -> int:
    """Return the number of groups, or raise a TypeError if ``optimizer`` is none."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
    return len(optimizer.param_groups)


def _holds(entry: Any, value: float) -> bool:
    if isinstance(entry, Tensor):  # it holds the value rounded to its dtype
        return torch.equal(entry, torch.full_like(entry, value))
    return bool(entry == value)


def per_group(name: str, value: Any, count: int) -> list[Any]:
    """Return one value per group from a value for all or a list."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        got = f"got {len(value)} values for {count} groups"
        raise ValueError(f"{name} must hold one value per group, {got}")
    return list(value)


def _check_schedules(schedules: object, optimizer: Optimizer) -> None:
    count = group_count(optimizer)
    if not isinstance(schedules, Mapping):
        got = f"got schedules={schedules!r}"
        raise TypeError(f"schedules must be a dict by name, such as {{'lr': schedule}}, {got}")
    if not schedules:
        raise ValueError(f"schedules must name at least one entry, got schedules={schedules!r}")
    for name, given in schedules.items():
        for schedule in per_group(f"schedules[{name!r}]", given, count):
            if not isinstance(schedule, Schedule):
                got = f"got {schedule!r}"
                raise TypeError(f"schedules[{name!r}] must be a Schedule or a list of them, {got}")
        for index, group in enumerate(optimizer.param_groups):
            if name not in group:
                has = ", ".join(key for key in group if key != "params")
                got = f"got {name!r}, which group {index} lacks (it has {has})"
                raise ValueError(f"schedules must name entries of every group, {got}")
            entry = _entry(group, name)
            number = isinstance(entry, Real) and not isinstance(entry, bool)
            if not number and not (isinstance(entry, Tensor) and entry.numel() == 1):
                got = f"got {name!r}, which is {entry!r} in group {index}"
                raise ValueError(f"schedules must name numeric entries, {got}")
