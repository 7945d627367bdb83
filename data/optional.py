"""Libraries that only some inputs need; each has a dependency group of its own."""

import importlib
from typing import Any

from launch.errors import ConfigError


def module(name: str, group: str, what: str, cure: str = "") -> Any:
    """Import a library.

    Args:
        group: the dependency group that installs it.
        what: needs it.
        cure: another way, if there is one.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        library = importlib.import_module(name)
        if hasattr(library, "__path__") and not getattr(library, "__file__", None):
            raise ImportError(f"{name} is but a folder, which Python takes for a package")
        return library
    except ImportError as error:
        raise ConfigError(
            f"{what} needs the library `{name}`, which is not installed: `pip install --group {group}`{cure}"
        ) from error
