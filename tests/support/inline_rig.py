"""Sessions on a model without a transport: the test's own thread brings messages and runs batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from streamcell.proto import pb
from streamcell.service.access.identity import ANYONE
from streamcell.service.batching.inline import InlinePolicy
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.lifecycle.table import Models
from streamcell.service.metrics.server_metrics import ServerMetrics
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import Limits
from streamcell.service.protocols.native.stream import StreamSession
from streamcell.service.repository.model_file import open_model
from streamcell.service.sessions.table import SessionTable
from streamcell.service.settings import Settings
from streamcell.service.transport.calls import Metadata

STEP = np.ones(3, np.float32).tobytes()


class Wire:
    """A call whose replies are kept, and whose thread is the test's own."""

    peer = "test"
    caller = ANYONE
    gone = "cancelled"
    again = False

    def __init__(self, later: list[Callable[[], None]]) -> None:
        self.later = later
        self.replies: list[bytes] = []
        self.ends: list[tuple[grpc.StatusCode, str, Metadata]] = []

    def reply(self, data: bytes, *, last: bool = True) -> None:
        self.replies.append(data)

    answer = reply

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        self.later.append(callback)
        return True

    def end(
        self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", trailing: Metadata = ()
    ) -> None:
        self.ends.append((code, details, trailing))

    fail = end

    def metadata(self) -> Metadata:
        return ()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        pass

    def resume(self) -> None:
        pass


class AlwaysShort(InlinePolicy):
    """Whatever the runs take on a busy machine."""

    def __init__(self) -> None:
        super().__init__()
        self.short = True

    def ran(self, rows: int, cpu_s: float, read_apart: int = 0) -> None: ...


class NotingPolicy(AlwaysShort):
    """The same; it notes the runs: rows, CPU seconds, rows of sessions whose messages are read apart."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[tuple[int, float, int]] = []

    def ran(self, rows: int, cpu_s: float, read_apart: int = 0) -> None:
        self.runs.append((rows, cpu_s, read_apart))


class Rig:
    """Sessions on a model, whose runs are done on the thread that brings their messages."""

    def __init__(self, models: Path, name: str, **changes: Any) -> None:
        settings = Settings.load(models=models, **changes)
        self.model: LoadedModel = load(open_model(models / f"{name}.onnx", name), settings, Device())
        limits = Limits(1 << 20, 4096, allow_non_finite=False, max_generate_steps=100, max_beam_width=8)
        self.context = CallContext(
            Models([self.model]), SessionTable(idle_timeout_s=0), ServerMetrics(), limits
        )
        self.model.batcher.inline.policy = AlwaysShort()
        # From here on the engine's own thread sleeps.
        while not self.model.batcher.inline.asleep:
            time.sleep(0.001)
        self.later: list[Callable[[], None]] = []

    def flush(self) -> None:
        """Run what was put off, as the serving thread does behind the messages that have arrived."""
        while self.later:
            self.later.pop(0)()

    def streams(self, count: int) -> list[tuple[Wire, StreamSession]]:
        made = []
        opening = pb.StreamRequest(open=pb.OpenSession(model=self.model.file.name), inputs=[STEP])
        for _ in range(count):
            wire = Wire(self.later)
            stream = StreamSession(wire, self.context)  # type: ignore[arg-type]
            assert stream.on_message(opening.SerializeToString())
            made.append((wire, stream))
        self.flush()
        return made

    def stop(self) -> None:
        self.model.runner.stop()

    def runs(self) -> tuple[int, int]:
        """(runs, rows) so far."""
        counts, total = self.model.metrics.batch_rows.snapshot()
        return counts[-1][1], int(total)
