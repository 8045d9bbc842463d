"""How far `streamcell stream --resume FILE` has come: its session's ticket, in a file that only its owner reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tables import TableError

if TYPE_CHECKING:
    from streamcell.client import Session, Ticket


class Progress:
    """A command that may be ended at any output, and goes on behind it when it is started again."""

    def __init__(self, file: Path, chunk: int) -> None:
        """`chunk`: timesteps a message."""
        self._file = file
        self._chunk = chunk

    def ticket(self) -> Ticket | None:
        """The ticket of the session that an earlier command has left; None if there is none.

        Raises:
            TableError: the file is no such file, or that command had another `chunk`.
        """
        from streamcell.client import Ticket

        try:
            found = json.loads(self._file.read_text())
            chunk = found.pop("chunk")
            ticket = Ticket(**found)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise TableError(f"{self._file}: expected what an earlier --resume has written") from None
        if chunk != self._chunk:
            raise TableError(f"{self._file}: begun with --chunk {chunk}, got {self._chunk}")
        return ticket

    def outputs(self, session: Session, items: Iterable[Any], window: int, *, live: bool) -> Iterator[Any]:
        """The outputs of `items` that no earlier command has given out; `live`: so are the items.

        The file is removed at the end.
        """
        self._save(session)
        lacking = session.pending
        if not live:
            items = islice(items, session.ticket().received + lacking, None)
        for _ in range(lacking):
            yield session.receive()
            self._save(session)
        for output in session.stream(items, window=window):
            yield output
            self._save(session)
        self._file.unlink(missing_ok=True)

    def _save(self, session: Session) -> None:
        new = self._file.with_name(self._file.name + ".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it has the token
        with os.fdopen(descriptor, "w") as file:
            json.dump({**asdict(session.ticket()), "chunk": self._chunk}, file)
        new.replace(self._file)
