"""Tunes Python's garbage collector so that full collections do not stall requests.

It looks for cycles of objects and holds the GIL. A full collection walks all objects: some 70,000 once the
libraries are imported, which takes 25 ms, and unary calls made it run several times a second. Calls create almost
no cycles, so full collections find nothing.
"""

from __future__ import annotations

import gc

# A collection of young objects starts after this surplus of allocations over deallocations; Python's default is 700.
_YOUNG = 5_000
# The same while a process imports: what is imported is no garbage.
_IMPORTING = 200_000


def spare_imports() -> None:
    """Look for hardly any garbage from now on. Call before the server's libraries are imported, and `tune_gc` later."""
    gc.set_threshold(_IMPORTING)


def tune_gc() -> None:
    """Collect less often, and `_freeze_heap`. Call in the server's own processes, after start-up."""
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
    _freeze_heap()


def _freeze_heap() -> None:
    """Collect garbage now, and exclude all objects that are alive from later collections."""
    gc.collect()
    gc.freeze()


def refreeze_heap() -> None:
    """Repeat that, for all objects, if it was done before: call after large changes, such as a load."""
    if gc.get_freeze_count():
        gc.unfreeze()
        _freeze_heap()
