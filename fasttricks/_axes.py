"""matplotlib's axes, for pictures that are asked for without any."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def new_axes() -> Axes:
    """Return the axes of a new figure of pyplot, which notebooks and ``pyplot.show`` find.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        message = 'plot needs matplotlib, which `pip install "fasttricks[examples]"` installs'
        raise ImportError(message) from error
    axes: Axes = pyplot.subplots()[1]
    return axes
