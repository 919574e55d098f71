"""Schedules on an optimizer's groups, with the face of torch's schedulers; no formula lives here.

The values of update k, counted from 0, are in the groups before update k: construction sets those
of update 0, each ``step()`` those of the next one, and ``last_epoch`` is the
update whose values are set.
"""

from __future__ import annotations

from fasttricks.lr_scheduler._cycles import CyclicLR, OneCycleLR
from fasttricks.lr_scheduler._scheduled_groups import ScheduledGroups

__all__ = ["CyclicLR", "OneCycleLR", "ScheduledGroups"]
