"""Replicas with a fault, which tests must notice: `python -m tests.support.wrong_replica FAULT serve …`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from streamcell.service.store import functions
from streamcell.service.store.interface import Claim, Claimed

from .mutants import changed


def careless() -> None:
    """It does not look at its lease."""
    from streamcell.service.store.lease import Lease

    Lease.valid = lambda self: True  # type: ignore[method-assign]
    Lease._lost = lambda self: None  # type: ignore[method-assign]


def no_fence() -> None:
    """Careless, and the store takes every put."""
    for old, new in (
        ("if redis.call('EXISTS', keys[1]) == 0 then return 'FENCED' end", ""),
        ("if h['err'] or h[1] ~= boot or h[2] ~= a[at] then", "if h['err'] then"),
        ("if (h[3] or '') <= a[at + 1] then redis.call", "if true then redis.call"),
    ):
        functions.TEXT = changed(functions.TEXT, old, new)
    careless()


def from_memory() -> None:
    """Careless, and it answers a resume of a session that it has without asking the store."""
    from streamcell.service.store.claims import Claims

    claim: Callable[..., None] = Claims.claim

    def from_memory(self: Any, asked: Claim, done: Callable[[Any], None]) -> None:
        if (stored := self._writer.entered(asked.session)) is None:
            claim(self, asked, done)
        else:
            done(Claimed(stored.fence, False, 0, 0, b"", True))

    Claims.claim = from_memory  # type: ignore[method-assign]
    careless()


if __name__ == "__main__":
    {each.__name__: each for each in (careless, no_fence, from_memory)}[sys.argv.pop(1)]()
    from streamcell.cli.main import main

    main()
