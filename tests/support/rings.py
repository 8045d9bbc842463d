"""The engine's side of the rings and front ends by what they write and read, without processes."""

from __future__ import annotations

import itertools
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamcell.service.engine.device import Device
from streamcell.service.errors import ServiceError
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.processes.engine.ring_runner import RingRunner
from streamcell.service.processes.engine.ring_sessions import RingSessions
from streamcell.service.processes.event_wakeup import EventWakeup
from streamcell.service.processes.ring import Reader, Records, Writer
from streamcell.service.processes.ring_records import (
    END,
    FAIL,
    FIELDS,
    OPEN,
    STEP,
    head_of,
    text_at,
    text_records,
    unpack_error,
)
from streamcell.service.repository.model_file import open_model
from streamcell.service.sessions.session import Output
from streamcell.service.sessions.shared_capacity import SharedCapacity
from streamcell.service.sessions.table import SessionTable
from streamcell.service.settings import Settings

MAX_SESSIONS, MAX_BATCH, MAX_CHUNK = 6, 4, 4
TOKENS = 12


@dataclass
class Reply:
    """A message's: the timesteps that came back, and how many steps were applied by then."""

    mode: Output
    steps: np.ndarray
    step_index: int


@dataclass
class Told:
    """What a session was sent."""

    replies: list[Reply] = field(default_factory=list)
    begun: list[bytes] = field(default_factory=list)  # of a message whose last record has not come
    errors: list[ServiceError] = field(default_factory=list)


class Front:
    """A front end, by what it writes and reads."""

    def __init__(self, ring_sessions: RingSessions, process_number: int) -> None:
        self.ring_sessions, self.process_number = ring_sessions, process_number
        capacity, model = ring_sessions.capacity, ring_sessions.model
        self.entries = SharedCapacity(
            model.max_sessions,
            model.engine.pool.first_slot,
            stateful=bool(model.file.signature.states),
            process_number=process_number,
            memory=os.dup(capacity.memory),
        )
        requests, replies = ring_sessions.attach(process_number)
        self.writer, self.reader = Writer(requests), Reader(replies)
        self.told: dict[int, Told] = defaultdict(Told)
        self.slot_versions: dict[int, int] = {}

    def open(self) -> int:
        """A session's entry."""
        entry, slot_version = self.entries.take_entry()
        self.slot_versions[entry] = slot_version
        self.told[entry] = Told()
        text = f"{self.process_number}-{entry}-{slot_version} test".encode()
        self.writer.write(text_records(self.ring_sessions.inputs, OPEN, entry, slot_version, text))
        return entry

    def records(self, entry: int, x: np.ndarray, mode: Output = Output.ALL) -> Records:
        """A message's."""
        layout, steps = self.ring_sessions.inputs, len(x)
        records = np.zeros((steps, layout.record_bytes), np.uint8)
        fields = np.ndarray(steps, FIELDS, records, strides=(layout.record_bytes,))
        fields["kind"], fields["mode"], fields["steps"] = STEP, mode.value, steps
        fields["entry"], fields["slot_version"] = entry, self.slot_versions[entry]
        fields["first"][0] = fields["last"][-1] = 1
        fields["stamp"], fields["index"] = time.perf_counter(), np.arange(steps)
        ((begin, end),) = layout.places
        records[:, begin:end] = np.ascontiguousarray(x).view(np.uint8).reshape(steps, -1)
        return records

    def send(self, entry: int, x: np.ndarray, mode: Output = Output.ALL) -> None:
        self.writer.write(self.records(entry, x, mode))

    def end(self, entry: int) -> None:
        self.writer.write(text_records(self.ring_sessions.inputs, END, entry, self.slot_versions.pop(entry)))

    def read(self) -> None:
        """Take what has come back."""
        records = self.reader.read()
        if records is None:
            return
        head = head_of(records)
        ((begin, end),) = self.ring_sessions.outputs.places
        at = 0
        while at < len(head):
            entry = int(head["entry"][at])
            told = self.told[entry]
            assert head["slot_version"][at] == self.slot_versions[entry]
            if head["kind"][at] == FAIL:
                text, count = text_at(records, at, int(head["steps"][at]))
                told.errors.append(unpack_error(text))
                at += count
                continue
            assert head["kind"][at] == STEP
            if (
                head["last"][at] or head["mode"][at] == Output.ALL.value
            ):  # else it says how far the session is
                told.begun.append(records[at, begin:end].tobytes())
            if head["last"][at]:
                mode = Output(int(head["mode"][at]))
                steps = np.frombuffer(b"".join(told.begun), np.float32).reshape(len(told.begun), -1)
                told.replies.append(Reply(mode, steps, int(head["index"][at])))
                told.begun = []
            at += 1


class Rig:
    """A model whose rings are served by the test's thread, unless its own is to."""

    def __init__(self, path: Path, *, own_thread: bool = False, **changes: Any) -> None:
        small = {"max_sessions": MAX_SESSIONS, "max_batch": MAX_BATCH, "max_chunk": MAX_CHUNK}
        configured = Settings.load(models=path.parent, **{**small, **changes})
        self.wakeup = EventWakeup()
        self.model: LoadedModel = load(open_model(path, path.stem), configured, Device(), wakeup=self.wakeup)
        self.table = SessionTable(idle_timeout_s=0)
        self.ring_sessions = RingSessions(self.model, self.table)
        self.rings = RingRunner(self.model.engine, self.model.metrics, allow_non_finite=False)
        if own_thread:
            self.ring_sessions.serve(configured.non_finite == "allow")
        else:
            self.model.runner.stop()
        self.fronts: list[Front] = []
        self.holders = itertools.count(2)

    def front(self) -> Front:
        self.fronts.append(Front(self.ring_sessions, next(self.holders)))
        return self.fronts[-1]

    def serve(self) -> list[list[int]]:
        """Run all that has come; each run's rows."""
        runs = []
        self.ring_sessions.gather()
        while (batch := self.ring_sessions.form()) is not None:
            runs.append(batch.counts.tolist())
            self.rings.run(batch)
            self.ring_sessions.gather()
        return runs

    def lose(self, *fronts: Front) -> None:
        for front in fronts:
            self.ring_sessions.lose(front.process_number)
            self.fronts.remove(front)
            front.entries.close()
        self.ring_sessions.gather()

    def close(self) -> None:
        """Stop the engine, and close the descriptors, which only a process's end would close."""
        self.lose(*self.fronts)
        self.model.runner.stop()
        self.ring_sessions.gather()  # ends the front ends that its thread has not seen end
        self.ring_sessions.capacity.close()
        self.wakeup.close()

    def state(self, entry: int) -> tuple[np.ndarray, ...]:
        return self.model.engine.pool.read(entry + self.model.engine.pool.first_slot)


Rigs = Callable[..., Rig]


def alone(module: torch.nn.Module, messages: list[np.ndarray], *, stateful: bool) -> list[np.ndarray]:
    """What PyTorch gives for each message of a session."""
    with torch.no_grad():
        if not stateful:
            return [module(torch.from_numpy(x[None]))[0][0].numpy() for x in messages]
        y = module(torch.from_numpy(np.concatenate(messages)[None]))[0][0].numpy()
    return np.split(y, np.cumsum([len(x) for x in messages])[:-1])


def check(
    told: Told, sent: list[tuple[np.ndarray, Output]], module: torch.nn.Module, *, stateful: bool
) -> None:
    """The replies are those of the first messages of `sent`, as many as there are."""
    assert not told.begun
    if not told.replies:
        return
    messages = sent[: len(told.replies)]
    expected = alone(module, [x for x, _ in messages], stateful=stateful)
    at = 0
    for reply, y, (_, mode) in zip(told.replies, expected, messages, strict=True):
        at += len(y)
        assert (reply.mode, reply.step_index) == (mode, at)
        if mode is Output.NONE:
            assert len(reply.steps) == 1  # that it is done
            continue
        wanted = y if mode is Output.ALL else y[-1:]
        np.testing.assert_allclose(reply.steps, wanted, rtol=1e-5, atol=1e-5)


def one_session(rig: Rig) -> tuple[Front, int]:
    front = rig.front()
    return front, front.open()


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
