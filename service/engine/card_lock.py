"""One process-wide lock for operations that must not run while a CUDA graph is captured.

ONNX Runtime captures in CUDA's global mode: while one thread captures, an allocation, a synchronous copy or a session
that is made or ends on any other thread fails, and spoils the capture; a session with graphs that ends then ends the
process (`cudaGraphExecDestroy` throws in a destructor; onnxruntime #32081). Runs of shapes that have run before do none
of this and take no lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from .device import Device

_WAIT_S = 60.0  # for another model's capture, which takes less than a second
_lock = threading.RLock()
_log = structlog.get_logger(__name__)


@contextmanager
def alone(device: Device) -> Iterator[None]:
    """A context in which no other thread captures, allocates or frees on a card. On the CPU it waits for nothing."""
    if device.on_host:
        yield
        return
    held = _lock.acquire(timeout=_WAIT_S)
    if not held:  # a load that hangs must not keep others from ending
        _log.error("another model has not released the card", device=str(device), waited_s=_WAIT_S)
    try:
        yield
    finally:
        if held:
            _lock.release()
