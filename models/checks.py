"""Checks of single settings. Each raises a ConfigError that names the setting."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import ConfigError


def choose(what: str, name: str, allowed: Sequence[str]) -> str:
    """`name`, if it is one of `allowed`; `what` says in the error which setting is meant.

    Raises:
        ConfigError: `name` is not among `allowed`.
    """
    if name not in allowed:
        raise ConfigError(f"{what} must be one of {', '.join(allowed)}; got {name!r}")
    return name


def positive(what: str, value: int) -> int:
    """`value`, if it is at least 1.

    Raises:
        ConfigError: it is not; `what` names the setting.
    """
    if value < 1:
        raise ConfigError(f"{what} must be at least 1; got {value}")
    return value


def share(what: str, value: float) -> float:
    """`value`, if it is at least 0 and below 1.

    Raises:
        ConfigError: it is not; `what` names the setting.
    """
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"{what} must be in [0, 1); got {value}")
    return value
