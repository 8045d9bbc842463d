"""Writes sessions' messages as ring records, one timestep in each."""

from __future__ import annotations

import numpy as np

from streamcell.service.errors import WrongByteCount
from streamcell.service.processes.ring import Records, Ring, Writer
from streamcell.service.processes.ring_records import FIELDS, HEADER, STEP, Layout
from streamcell.service.sessions.session import Session, Work


class MessageWriter(Writer):
    """The writing side of a ring to the engine process."""

    def __init__(self, ring: Ring, layout: Layout) -> None:
        """`layout`: that of the model's inputs."""
        super().__init__(ring)
        self._layout = layout

    def misfit(self, work: Work) -> WrongByteCount | None:
        """The error if a payload's length does not fit the message's timesteps, else None. Call it before `message`."""
        for payload, (begin, end) in zip(work.payloads, self._layout.places, strict=True):
            expected = work.steps * (end - begin)
            if len(payload) != expected:
                return WrongByteCount(
                    f"an input of {work.steps} timesteps takes {expected} bytes, got {len(payload)}",
                    expected=expected,
                    got=len(payload),
                )
        return None

    def message(self, session: Session, work: Work, done: int, size: int) -> bool:
        """Write `size` timesteps of a message from `done` on; False, and nothing written, if there is no room.

        A message of one timestep is not published yet.
        """
        if self.room(size) < size:
            return False
        if work.steps == 1:
            at = self.place()
            HEADER.pack_into(
                self.bytes, at, STEP, work.output.value, 1, 1, session.slot, session.slot_version, 1,
                work.arrived_s, 0,
            )  # fmt: skip
            for payload, (begin, end) in zip(work.payloads, self._layout.places, strict=True):
                self.bytes[at + begin : at + end] = payload
            self.wrote()
        else:
            self.write(self._part(session, work, done, size))
        return True

    def _part(self, session: Session, work: Work, done: int, size: int) -> Records:
        layout = self._layout
        records = np.zeros((size, layout.record_bytes), np.uint8)
        records[:, : HEADER.size] = np.frombuffer(
            HEADER.pack(
                STEP,
                work.output.value,
                0,
                0,
                session.slot,
                session.slot_version,
                work.steps,
                work.arrived_s,
                0,
            ),
            np.uint8,
        )
        fields = np.ndarray(size, FIELDS, records, strides=(layout.record_bytes,))
        fields["index"] = np.arange(done, done + size)
        if not done:
            fields["first"][0] = 1
        if done + size == work.steps:
            fields["last"][-1] = 1
        for payload, (begin, end) in zip(work.payloads, layout.places, strict=True):
            steps = np.frombuffer(payload, np.uint8).reshape(work.steps, end - begin)
            records[:, begin:end] = steps[done : done + size]
        return records
