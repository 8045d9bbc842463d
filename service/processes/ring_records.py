"""The format of a ring's records: a header, then one timestep's tensors back to back, or a piece of a text."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from streamcell.card import Tensor
from streamcell.service.errors import ServiceError

from .ring import Records

# To the engine: OPEN begins a session (its id and peer as a text), STEP is a timestep of a message, END ends a session
# (`index` is the number of its messages that the front end dropped). From it: STEP is a timestep's outputs, FAIL ends a
# session with an error (a text).
OPEN, STEP, END, FAIL = range(1, 5)

# kind, mode (a `session.Output`), first and last of its message, the session's entry and slot_version, `steps`: of the
# message, or bytes of a text; stamp: the message's arrival, time.perf_counter() seconds; index: to the engine, the
# timestep's place in its message; from it, steps applied.
HEADER = struct.Struct("<BBBBIIIdq")
FIELDS = np.dtype(
    {
        "names": ["kind", "mode", "first", "last", "entry", "slot_version", "steps", "stamp", "index"],
        "formats": ["u1", "u1", "u1", "u1", "<u4", "<u4", "<u4", "<f8", "<i8"],
        "offsets": [0, 1, 2, 3, 4, 8, 12, 16, 24],
        "itemsize": HEADER.size,
    }
)
Head: TypeAlias = np.ndarray[Any, Any]

_LEAST_PAYLOAD_BYTES = 64
_RING_BYTES = 4 * 1024 * 1024
_MOST_RECORDS = 4096
_FEWEST_RECORDS = 256
_MOST_ERROR_BYTES = _FEWEST_RECORDS // 4 * _LEAST_PAYLOAD_BYTES  # the smallest ring's single write


@dataclass(frozen=True)
class Layout:
    """The layout of records of a model's inputs or outputs.

    Attributes:
        places: (first byte, end) of each tensor's step in a record.
        record_bytes: bytes of a record, header included.
        capacity: records in a ring.
    """

    places: tuple[tuple[int, int], ...]
    record_bytes: int
    capacity: int

    @classmethod
    def of(cls, tensors: Sequence[Tensor], max_chunk: int) -> Layout:
        """The layout of `tensors` in a ring with room for at least four chunks of `max_chunk` timesteps."""
        places = []
        at = HEADER.size
        for tensor in tensors:
            places.append((at, at + tensor.step_bytes))
            at += tensor.step_bytes
        record_bytes = -(-max(at, HEADER.size + _LEAST_PAYLOAD_BYTES) // 8) * 8
        fewest = max(_FEWEST_RECORDS, 4 * min(max_chunk, _MOST_RECORDS // 4))
        return cls(tuple(places), record_bytes, min(max(_RING_BYTES // record_bytes, fewest), _MOST_RECORDS))

    @property
    def payload_bytes(self) -> int:
        """Bytes of a record's payload."""
        return self.record_bytes - HEADER.size

    @property
    def part(self) -> int:
        """Maximum records written at once."""
        return self.capacity // 4


def head_of(records: Records) -> Head:
    """The headers of uint8[n, record_bytes] as a structured array[n]; a view if the headers are contiguous."""
    return np.ascontiguousarray(records[:, : HEADER.size]).view(FIELDS)[:, 0]


def text_records(
    layout: Layout, kind: int, entry: int, slot_version: int, text: bytes = b"", index: int = 0
) -> Records:
    """A text as records, uint8[n, record_bytes]. It is cut to what one write may hold."""
    text = text[: layout.part * layout.payload_bytes]
    number = -(-len(text) // layout.payload_bytes) or 1
    records = np.zeros((number, layout.record_bytes), np.uint8)
    records[:, : HEADER.size] = np.frombuffer(
        HEADER.pack(kind, 0, 1, 1, entry, slot_version, len(text), 0.0, index), np.uint8
    )
    padded = np.zeros(number * layout.payload_bytes, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    records[:, HEADER.size :] = padded.reshape(number, -1)
    return records


def text_at(records: Records, at: int, size: int) -> tuple[bytes, int]:
    """The text of `size` bytes that begins in record `at`, and the number of its records."""
    payload_bytes = records.shape[1] - HEADER.size
    number = -(-size // payload_bytes) or 1
    return records[at : at + number, HEADER.size :].tobytes()[:size], number


def pack_error(error: ServiceError) -> bytes:
    """`error` as a text that fits one write of any ring; without its facts if it is too long with them."""
    packed = _packed([error.reason, str(error), error.facts])
    if len(packed) > _MOST_ERROR_BYTES:
        packed = _packed([error.reason, str(error)[: _MOST_ERROR_BYTES // 8], {}])
    return packed


def _packed(parts: list[object]) -> bytes:
    return json.dumps(parts, ensure_ascii=False).encode(errors="replace")


def pack_reason(error: ServiceError) -> bytes:
    """The class of `error` as a text, without any text that a client could choose."""
    return json.dumps([error.reason, "", {}]).encode()


def unpack_error(text: bytes) -> ServiceError:
    """The error packed by `pack_error` or `pack_reason`."""
    reason, said, facts = json.loads(text)
    return _class_of(reason)(said, **facts)


def _class_of(reason: str) -> type[ServiceError]:
    todo = [ServiceError]
    while todo:
        each = todo.pop()
        if each.reason == reason and (each is ServiceError or "reason" in vars(each)):
            return each
        todo += each.__subclasses__()
    return ServiceError
