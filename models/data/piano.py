"""The 88 keys: key k is MIDI pitch k + 21, A0 to C8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

KEYS = 88
LOWEST = 21

Roll = NDArray[np.bool_]
Element = TypeVar("Element", bound=np.generic)


def transpose(roll: NDArray[Element], semitones: int) -> NDArray[Element]:
    """`roll` [time, 88] moved up (or down, if negative); keys that leave the piano are lost."""
    moved = np.zeros_like(roll)
    if semitones >= 0:
        moved[:, semitones:] = roll[:, : roll.shape[1] - semitones]
    else:
        moved[:, :semitones] = roll[:, -semitones:]
    return moved


def room(roll: Roll) -> tuple[int, int]:
    """How many semitones a roll bool[time, 88] can go down and up without a key leaving the piano."""
    used = np.flatnonzero(roll.any(axis=0))
    return (int(used[0]), int(roll.shape[1] - 1 - used[-1])) if len(used) else (0, 0)


def versions(rolls: Sequence[Roll], *, gram: int = 8, share: float = 0.25) -> list[int | None]:
    """Which rolls are another version of an earlier one, in any key.

    Two rolls are versions of one piece if more than `share` of the shorter one's runs of `gram` timesteps are
    in both, counted with every run transposed to the same lowest note.

    Returns:
        For each roll the index of the first roll that it is a version of, or None.
    """
    seen: dict[bytes, set[int]] = {}
    sizes: list[int] = []
    found: list[int | None] = []
    for index, roll in enumerate(rolls):
        grams = _grams(roll, gram)
        sizes.append(len(grams))
        shared: dict[int, int] = {}
        for key in grams:
            for other in seen.get(key, ()):
                shared[other] = shared.get(other, 0) + 1
        likes = [other for other, count in shared.items() if count > share * min(len(grams), sizes[other])]
        found.append(min(likes, default=None))
        for key in grams:
            seen.setdefault(key, set()).add(index)
    return found


def _grams(roll: Roll, gram: int) -> set[bytes]:
    pieces = (roll[start : start + gram] for start in range(max(1, len(roll) - gram + 1)))
    return {np.packbits(transpose(piece, -room(piece)[0])).tobytes() for piece in pieces}
