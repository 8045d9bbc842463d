"""Python's garbage collector, kept from making those wait who are being served.

It looks for cycles of objects, holding the GIL. A full collection walks every object there is: some 70,000 once the
libraries are imported, which takes 25 ms, and unary calls had it begin several times a second. What a call makes goes
with its last reference, so there is next to nothing to be found.
"""

from __future__ import annotations

import gc

# Objects made and not freed again after which the young ones are looked at; Python's own choice is 700.
_YOUNG = 5_000


def tune_gc() -> None:
    """Collect less often, and `freeze_heap`. For a process of the server's own, once it has what it serves with."""
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
    freeze_heap()


def freeze_heap() -> None:
    """Collect what is garbage, and leave out of later collections all that is alive."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def refreeze_heap() -> None:
    """`freeze_heap`, where it was done before: for when much of what is alive then has come or gone."""
    if gc.get_freeze_count():
        freeze_heap()
