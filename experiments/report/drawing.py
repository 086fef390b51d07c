"""Matplotlib for the figures; it is an optional dependency."""

from typing import Any

from experiments.config import ConfigError
from experiments.run import pasteable

WIDTH = 5.5  # inches, a column of text


def require_matplotlib(alternative: str = "") -> None:
    """Checks that matplotlib can be imported.

    Args:
      alternative: what the user may do instead, as the end of the message.

    Raises:
      ConfigError: it cannot; the message says how to install it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error}; {pasteable.install('figures')}{alternative}") from error


def new_figure(height: float, layout: Any = "constrained") -> Any:
    """An empty figure as wide as a column of text.

    Args:
      height: inches.
      layout: a layout engine of matplotlib, or its name.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout=layout)
