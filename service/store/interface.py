"""What the store and the sessions in it know of each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Stored(Protocol):
    """A live session of the store. Two are equal only if they are the same object.

    Attributes:
        key: the session's id, 16 bytes.
        fence: of the claim that it lives by.
    """

    key: bytes
    fence: int

    def image(self) -> tuple[int, int, bytes] | None:
        """Messages applied, timesteps told of a generation, and the state at that point; None: it has ended.

        The writer's thread calls it. It takes the session's own lock.
        """

    def stored(self, number: int, steps: int) -> bool:
        """The store has the session up to here, and so has its replica, if it has one. On the writer's thread.

        Returns:
            True if its client knows, or there is none; else `tell_durable` is called a moment later.
        """

    def tell_durable(self) -> None:
        """Tell its client how far the store is, unless a reply has done so or is due. On the writer's thread."""

    def lost(self) -> None:
        """Another replica has the session, or may have it. On a thread of the store."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What an opening asks of the store.

    Attributes:
        session: its id, 16 bytes.
        token_hash: SHA-256 of its token.
        attempt: of the opening; one that is not above the last one taken is late.
        tenant: whose it is; empty: nobody's.
        model: the name of a new one's, for people who look into the store.
        may_create: the record is made if there is none.
        image: what a new record begins with, as `Stored.image` gives it: a fork's or a restored session's must be in
            the store before its opening is answered. None: nothing yet.
    """

    session: bytes
    token_hash: bytes
    attempt: int
    tenant: str
    model: str
    may_create: bool
    image: tuple[int, int, bytes] | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """The session is this replica's.

    Attributes:
        fence: of the claim; for `Stored.fence`.
        created: the record has no image: the session begins anew.
        number: messages applied.
        steps: timesteps told of a generation.
        image: the state at that point, as `Stored.image` gave it; empty if `created` or `held`.
        held: the session is live here, under the same fence.
    """

    fence: int
    created: bool
    number: int
    steps: int
    image: bytes
    held: bool


class SharedStore(Protocol):
    """The store, as far as a session needs it; `store.Store` says what each does."""

    def enter(self, stored: Stored) -> None: ...
    def changed(self, stored: Stored, *, sync: bool) -> None: ...
    def release(self, stored: Stored, done: Callable[[], None]) -> None: ...
    def delete(self, stored: Stored) -> None: ...
    def may_tell(self) -> bool: ...
