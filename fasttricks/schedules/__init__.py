"""Schedules: pure functions from an optimizer step to a value (a rate, a momentum, a weight decay).

The step convention, the same for every schedule:

- Update k, counted from 0, uses ``schedule(k)``.
- A run has ``total_steps`` updates, 0 to ``total_steps - 1``. Update 0 uses the first value and
  update ``total_steps - 1`` the last value: both ends are used, neither is passed.
- Before step 0 the first value holds, beyond the last step the last value holds. Those without an
  end (``triangular``, ``triangular2``, ``exp_range``, ``step_decay``) go on.
- ``one_cycle`` starts at ``max_lr / div_factor``, peaks at step ``pct_start * total_steps - 1`` and
  ends at ``max_lr / div_factor / final_div_factor``: the final factor divides the *initial* value,
  as in torch (fastai and the papers divide ``max_lr``: write ``final_div_factor = their_factor /
  div_factor``).
- torch's schedulers set the value of update k after k calls of ``step()``: ``last_epoch == k``. So
  ``one_cycle(max_lr, total_steps)(k)`` is what ``torch.optim.lr_scheduler.OneCycleLR`` sets at
  ``last_epoch == k``, and ``triangular(base_lr, max_lr, ...)(k)`` what ``CyclicLR`` sets there. At
  ``k == total_steps`` torch runs on past its end value; here it holds.

An int or a float gives a Python float. A tensor of steps, of any shape, gives a tensor on the same
device, in its own floating dtype, or for whole numbers in float64 (float32 on mps, which has no
float64). No Python branch looks at the step, so a 0-D tensor works inside ``torch.compile`` and a
CUDA graph.
"""

from __future__ import annotations

from fasttricks.schedules._base import Schedule
from fasttricks.schedules._cyclic import cycled_momentum, exp_range, triangular, triangular2
from fasttricks.schedules._one_cycle import one_cycle
from fasttricks.schedules._scaling import linear_scaled_lr, sqrt_scaled_lr
from fasttricks.schedules._simple import (
    constant,
    cosine,
    linear,
    piecewise_linear,
    step_decay,
    warmup,
)

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "cycled_momentum",
    "exp_range",
    "linear",
    "linear_scaled_lr",
    "one_cycle",
    "piecewise_linear",
    "sqrt_scaled_lr",
    "step_decay",
    "triangular",
    "triangular2",
    "warmup",
]
