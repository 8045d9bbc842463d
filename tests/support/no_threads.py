"""A machine that gives no more threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_MORE_THAN_THERE_IS = 1 << 47  # bytes of address space on 64 bits


@contextmanager
def no_threads() -> Iterator[None]:
    """In here, every thread that this process starts fails to start: there is no room for its stack."""
    before = threading.stack_size(_MORE_THAN_THERE_IS)
    try:
        yield
    finally:
        threading.stack_size(before)
