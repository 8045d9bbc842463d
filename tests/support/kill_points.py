"""Servers in this process, and what a start makes of the journal's bytes that a kill leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from streamcell.service.durability.journal import Journal
from streamcell.service.server import Server
from streamcell.service.settings import Settings


@contextmanager
def serving(**settings: Any) -> Iterator[Server]:
    """A server on ports of its own."""
    made = Server(Settings.load(port=0, metrics_port=0, **settings))
    made.start()
    try:
        yield made
    finally:
        made.stop()


def journal_of(data: bytes, server: Server, folder: Path) -> Journal:
    """A new journal of the server's model `sum`, in a new folder beside a file of these bytes."""
    live: Any = server.host.models.find("sum", "").journal
    folder.mkdir()
    (folder / "left.journal").write_bytes(data)
    return Journal(folder, live._model, live.counts, live._shapes)


def replies_late(patch: pytest.MonkeyPatch, entry: type[Any]) -> None:
    """Make an entry of a journal keep a reply only as a later one is committed."""
    keep, commit = entry.keep, entry.commit
    due: list[Any] = []

    def committed(self: Any, *given: Any) -> None:
        if len(due) > 1:
            keep(*due.pop(0))
        commit(self, *given)

    patch.setattr(entry, "keep", lambda *given: due.append(given))
    patch.setattr(entry, "commit", committed)
