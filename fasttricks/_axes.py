"""matplotlib's axes, for pictures that are asked for without any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def new_axes(**options: Any) -> Axes:
    """Return the axes of a new figure of pyplot, which notebooks and ``pyplot.show`` find.

    ``options`` are those of ``pyplot.subplots``.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        message = 'plot needs matplotlib, which `pip install "fasttricks[examples]"` installs'
        raise ImportError(message) from error
    axes: Axes = pyplot.subplots(**options)[1]
    return axes
