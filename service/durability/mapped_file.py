"""A journal's file: a header that is checked before anything else of it is believed, and mapped arrays."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from .layout import FORMAT, PAGE, Array, Counts, file_bytes, sections

_MAGIC = b"StreamCell jrnl\n"
_HEAD = struct.Struct("<16sIII")  # magic, format, bytes of the text, its CRC-32
_CLEAN_AT = PAGE - 8
_CLEAN = struct.pack("<Q", 0x_C1EA_C1EA_C1EA_C1EA)
_MOST_ROWS = 1 << 31
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class JournalError(Exception):
    """A journal cannot be used: what is wrong with it."""


def boot_id() -> str:
    """Which start of the machine this is; "" if it does not tell."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


class MappedFile:
    """One file and its arrays, by name. They are the file's pages: what is stored in them outlives the process."""

    def __init__(
        self,
        path: Path,
        file: IO[bytes] | None,
        memory: mmap.mmap,
        counts: Counts,
        states: Sequence[Any],
    ) -> None:
        """Take over `file`, which is locked, and `memory`, whose size is the layout's; use the class's methods."""
        self.path = path
        self._file = file
        self.counts = counts
        self._memory = memory
        self.arrays: dict[str, Array] = {
            each.name: np.frombuffer(
                memory, each.dtype, int(np.prod(each.shape, dtype=np.int64)), each.offset
            ).reshape(each.shape)
            for each in sections(counts, states)
        }
        self.states = [self.arrays[f"state {at}"] for at in range(len(states))]

    @classmethod
    def create(
        cls,
        path: Path,
        model: dict[str, str],
        counts: Counts,
        states: Sequence[tuple[np.dtype[Any], tuple[int, ...]]],
    ) -> MappedFile:
        """Make a file of zeros, all of it allocated: storing into a hole of a full disk would kill the process.

        Args:
            path: the file; it must not exist.
            model: what the states belong to: name, version, hash of the file.
            counts: its sizes.
            states: dtype and shape of one row of each state.

        Raises:
            JournalError: there is no room on the disk, or it cannot be written.
        """
        size = file_bytes(sections(counts, states))
        text = json.dumps(_about(model, counts, states)).encode()
        head = _HEAD.pack(_MAGIC, FORMAT, len(text), zlib.crc32(text)) + text
        if len(head) > _CLEAN_AT:
            raise JournalError(f"{path}: the model has too many states for a journal")
        try:
            file = path.open("x+b")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(file.fileno(), 0, size)
            file.write(head)
            file.flush()
            memory = mmap.mmap(file.fileno(), size)
        except OSError as error:
            path.unlink(missing_ok=True)
            hint = (
                f"; {size} bytes are needed: free some, or set --max-sessions lower"
                if error.errno == errno.ENOSPC
                else ""
            )
            raise JournalError(f"{path}: {error.strerror}{hint}") from error
        return cls(path, file, memory, counts, states)

    @classmethod
    def in_memory(cls, counts: Counts, states: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]) -> MappedFile:
        """The same arrays without a file. Pages that nobody writes take no memory."""
        size = file_bytes(sections(counts, states))
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return cls(Path(), None, memory, counts, states)

    @classmethod
    def open_old(
        cls, path: Path, model: dict[str, str], states: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]
    ) -> MappedFile:
        """Map a file that another process has left, privately: nothing is written to it.

        Raises:
            BlockingIOError: a model that is served has it.
            JournalError: it is no journal, is torn, belongs to another model, or was not written back before the
                machine stopped.
        """
        file = path.open("rb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            head = file.read(PAGE)
            size = os.fstat(file.fileno()).st_size
            counts = _checked(head, model, states)
            if size != file_bytes(sections(counts, states)):
                raise JournalError("it is longer or shorter than its header says")
            memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        except BaseException:
            file.close()
            raise
        return cls(path, file, memory, counts, states)

    def mark_clean(self) -> None:
        """Write all back to the disk, and say so in the header: the file then outlives the machine, too."""
        self._memory.flush()
        self._memory[_CLEAN_AT:PAGE] = _CLEAN
        self._memory.flush(0, PAGE)

    def move(self, path: Path) -> None:
        """Give the file another name, in place of a file that has it."""
        self.path.replace(path)
        self.path = path

    def remove(self) -> None:
        """Delete the file. Whoever has it mapped keeps its pages."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()


def remove_if_left(path: Path) -> None:
    """Delete a file, unless a process has it locked."""
    with suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def _about(model: dict[str, str], counts: Counts, states: Sequence[Any]) -> dict[str, Any]:
    return {
        "model": model,
        "boot": boot_id(),
        "counts": asdict(counts),
        "states": [[np.dtype(dtype).str, list(shape)] for dtype, shape in states],
    }


def _checked(head: bytes, model: dict[str, str], states: Sequence[Any]) -> Counts:
    """The sizes of a file with this first page."""
    if len(head) < PAGE or not head.startswith(_MAGIC):
        raise JournalError("it is no journal")
    _, number, size, crc = _HEAD.unpack_from(head)
    if number != FORMAT:
        raise JournalError(f"it has format {number}; this server writes format {FORMAT}")
    text = head[_HEAD.size : _HEAD.size + size]
    if _HEAD.size + size > _CLEAN_AT or zlib.crc32(text) != crc:
        raise JournalError("its header is torn")
    try:
        about = json.loads(text)
        counts = Counts(**about["counts"])
        found = (about["model"], about["states"], about["boot"])
        sizes = list(asdict(counts).values())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise JournalError(f"its header is no header of a journal ({type(error).__name__})") from error
    if not all(type(each) is int and 0 <= each < _MOST_ROWS for each in sizes) or not counts.window:
        raise JournalError("its header has impossible sizes")
    expected = _about(model, counts, states)
    if found[0] != model:
        raise JournalError("it belongs to another model file")
    if found[1] != expected["states"]:
        raise JournalError("it has other states than the model")
    clean = head[_CLEAN_AT:PAGE] == _CLEAN
    if not clean and (found[2] != expected["boot"] or not found[2]):
        raise JournalError("the machine has stopped since, and not all of it was written back")
    return counts
