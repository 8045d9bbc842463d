"""How an engine is to run its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from streamcell.service.load_errors import DeviceError
from streamcell.service.settings import Settings

from .device import Device
from .pool import MakeJournal

Cell: TypeAlias = Literal["auto", "operator", "decomposed"]
Arithmetic: TypeAlias = Literal["float32", "int8"]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What a model's engine is made with.

    Attributes:
        device: the device that it runs on.
        max_sessions: sessions that may have a state.
        slots: rows of the pool that they share; None: each has its own.
        max_batch: the most rows of a run.
        max_chunk: the most timesteps a row of a run.
        intra_op_threads: ONNX Runtime's threads within an operator.
        fixed_shapes: pad runs to sizes 1, 2, 4, …; None: on CUDA only.
        cell: what runs of one timestep compute recurrent layers with: ONNX Runtime's operators, the same
            written out, or whichever was faster at warm-up, for each size; None: that on CUDA and, for GRU and RNN,
            on the CPU, where the LSTM operator is the faster one.
        make_journal: makes the file that holds the pool, if sessions are to outlive the process; None: memory does.
        arithmetic: what products by weights that the file stores in int8 are computed in, in every run.
        cuda_graphs: replay runs of one timestep as CUDA graphs, or fail; None: on CUDA if that is known to be safe.
    """

    device: Device
    max_sessions: int
    slots: int | None = None
    max_batch: int
    max_chunk: int
    intra_op_threads: int = 1
    fixed_shapes: bool | None = None
    cell: Cell | None = None
    arithmetic: Arithmetic = "float32"
    cuda_graphs: bool | None = None
    make_journal: MakeJournal | None = None

    @classmethod
    def of(cls, settings: Settings, device: Device, *, stateful: bool) -> EngineOptions:
        """The options that the server's settings give.

        A stateless model may look at a message as a whole, so its messages are not cut into chunks.
        """
        return cls(
            device=device,
            max_sessions=settings.max_sessions,
            slots=settings.slots if stateful else None,
            max_batch=settings.max_batch,
            max_chunk=settings.max_chunk if stateful else settings.max_steps_per_message,
            intra_op_threads=settings.intra_op_threads,
            fixed_shapes=settings.fixed_shapes,
            cell=settings.cell,
            cuda_graphs=settings.cuda_graphs,
        )

    @property
    def spilling_rows(self) -> int | None:
        """The rows that sessions share, if they are fewer than sessions; None: each session has its own.

        A pool in a file's pages needs none: the kernel removes idle sessions' pages from memory.
        """
        shared = self.slots is not None and self.slots < self.max_sessions
        return self.slots if shared and not (self.make_journal is not None and self.device.on_host) else None

    @property
    def pads(self) -> bool:
        """Whether runs are padded to fixed sizes."""
        return (not self.device.on_host) if self.fixed_shapes is None else self.fixed_shapes

    def check(self) -> None:
        """Raise DeviceError if no engine can be made with these options, whatever its model is."""
        if self.cuda_graphs and (self.device.on_host or not self.pads):
            raise DeviceError(f"device {self.device}: CUDA graphs need a CUDA device and fixed shapes")
