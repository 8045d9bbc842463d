"""Waits for what another thread or process brings about."""

from __future__ import annotations

import time
from collections.abc import Callable

_PAUSE_S = 0.005


def waited(holds: Callable[[], object], most_s: float = 60.0) -> bool:
    """True as soon as `holds` does; False if it does not within so many seconds."""
    end_s = time.monotonic() + most_s
    while time.monotonic() < end_s:
        if holds():
            return True
        time.sleep(_PAUSE_S)
    return bool(holds())
