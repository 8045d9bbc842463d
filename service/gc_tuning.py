"""Tunes Python's garbage collector so that full collections do not stall requests.

It looks for cycles of objects and holds the GIL. A full collection walks all objects: some 70,000 once the
libraries are imported, which takes 25 ms, and unary calls made it run several times a second. Calls create almost
no cycles, so full collections find nothing.
"""

from __future__ import annotations

import gc

# A collection of young objects starts after this surplus of allocations over deallocations; Python's default is 700.
_YOUNG = 5_000


def tune_gc() -> None:
    """Collect less often, and `freeze_heap`. Call in the server's own processes, after start-up."""
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
    freeze_heap()


def freeze_heap() -> None:
    """Collect garbage now, and exclude all objects that are alive from later collections."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def refreeze_heap() -> None:
    """Repeat `freeze_heap` if it was done before: call after large changes, such as a load."""
    if gc.get_freeze_count():
        freeze_heap()
