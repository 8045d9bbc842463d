"""Which part of a data set an item belongs to."""

from __future__ import annotations

import hashlib

SPLITS = ("train", "valid", "test")


def split_of(name: str, *, test: float, valid: float) -> str:
    """The part that an item belongs to, from its name alone.

    The first eight bytes of the name's SHA-256, read as a big-endian fraction of 2⁶⁴, decide: below `test` it
    is "test", below `test` + `valid` it is "valid", else "train". So an item keeps its part when others come
    or go.
    """
    fraction = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "test" if fraction < test else "valid" if fraction < test + valid else "train"
