"""The store's functions (`functions.lua`): their text, their keys, and their calls as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

VERSION = 1  # rises with each change of the text, for replicas of two releases share a store during an update
TEXT = Path(__file__).with_name("functions.lua").read_text(encoding="utf-8")

FENCE = b"sc:fence"
SWEEP = b"sc:sweep"
RECORDS = b"sc:s:*"
ASKED = "sc:a:"

_NAMES = {
    name: b"streamcell_%d_%b" % (VERSION, name.encode())
    for name in ("join", "renew", "leave", "claim", "put", "free", "delete", "sweep")
}


def record_key(session: bytes) -> bytes:
    """Where a session's record lies."""
    return b"sc:s:" + session.hex().encode()


def lease_key(boot: str) -> bytes:
    """Where a replica's lease lies."""
    return b"sc:l:" + boot.encode()


def place(number: int, steps: int) -> bytes:
    """A record's `at`: as text, it sorts like the pair."""
    return b"%020d%020d" % (number, steps)


def read_place(at: bytes) -> tuple[int, int]:
    """Number and steps of a record's `at`.

    Raises:
        ValueError: it is none.
    """
    if len(at) != 40 or not at.isdigit():
        raise ValueError("no place in a session")
    return int(at[:20]), int(at[20:])


def packed(*parts: bytes) -> bytes:
    """A command, as the store's protocol has it (RESP2)."""
    return b"".join(_pieces(parts))


def _pieces(parts: Sequence[bytes]) -> Iterable[bytes]:
    yield b"*%d\r\n" % len(parts)
    for part in parts:
        yield b"$%d\r\n" % len(part)
        yield part
        yield b"\r\n"


def call(name: str, keys: Sequence[bytes], arguments: Sequence[bytes]) -> bytes:
    """A call of one of the functions."""
    return packed(b"FCALL", _NAMES[name], b"%d" % len(keys), *keys, *arguments)
