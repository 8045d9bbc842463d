"""A live session with its model, as the table of all sessions has it."""

from __future__ import annotations

from typing import Generic, TypeVar

from .model import Model
from .session import Session

M_co = TypeVar("M_co", bound=Model, covariant=True)


class Live(Generic[M_co]):
    """A session, its model, its `number` in the order of opening, `why` it is being ended, if known.

    `counted`: by its owner, as one.
    """

    __slots__ = ("counted", "model", "number", "session", "why")

    def __init__(self, session: Session, model: M_co, number: int, *, counted: bool = True) -> None:
        self.session = session
        self.model = model
        self.number = number
        self.why = ""
        self.counted = counted

    @property
    def place(self) -> tuple[str, str]:
        """Whose it is, and its model's name."""
        return self.session.tenant, self.model.file.name
