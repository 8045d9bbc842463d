"""The device that a model runs on, the only place that separates the CPU from CUDA: providers, memory, copies."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import structlog

from streamcell.service.load_errors import DeviceError

from .cuda_copies import Copies, CudaError, HostCopies, cards, cuda_copies, cuda_runtime
from .time_limit import TimeLimit

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# The first ONNX Runtime whose CUDA kernels no longer re-read freed host memory when a graph is replayed
# (onnxruntime #32120, #32121).
GRAPHS_SINCE = (1, 31)
# The session's setting that makes it report the device of each node.
RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
# The largest result of constants that is computed as a session is made.
_FOLDED_BYTES = "optimization.constant_folding_max_output_size_in_bytes"
_LEAST_FOLDED_BYTES = 1 << 20
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Device:
    """`cpu`, or `cuda` with the index of the card.

    Attributes:
        kind: "cpu" or "cuda".
        index: which card.
        apart: on the CPU, keep the model's tensors apart from the server's and copy between them, as a card needs
            it: the code of the CUDA path, for machines without a card.
        tf32: on a card, matrix products round their float32 inputs to 10 bits of fraction.
    """

    kind: str = "cpu"
    index: int = 0
    apart: bool = False
    tf32: bool = False

    @classmethod
    def parse(cls, text: str, *, tf32: bool = False) -> Device:
        """Read "cpu", "cuda" or "cuda:N".

        Raises:
            DeviceError: `text` is none of these.
        """
        match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", text.strip().lower())
        if match is None or (match[1] == "cpu" and match[2] is not None):
            raise DeviceError(f"device {text!r}: expected 'cpu', 'cuda' or 'cuda:N'")
        return cls(match[1], int(match[2] or 0), tf32=tf32)

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"

    @property
    def on_host(self) -> bool:
        """Whether the model reads and writes the server's own memory."""
        return self.kind == "cpu" and not self.apart

    @property
    def scatter(self) -> Literal["nd", "elements"]:
        """How to write rows to the pool: the faster way where CUDA graphs replay it rightly."""
        return "nd" if self.replays_safely else "elements"

    @property
    def few_kernels(self) -> bool:
        """Whether a node more costs more than the copies that it saves, as on a card."""
        return not self.on_host

    @property
    def replays_safely(self) -> bool:
        """Whether this ONNX Runtime can be trusted to replay CUDA graphs."""
        return self.kind == "cpu" or tuple(map(int, ort.__version__.split(".")[:2])) >= GRAPHS_SINCE

    def check(self) -> None:
        """Raise DeviceError unless this ONNX Runtime build has a provider for the device, and the machine has it."""
        if self.kind == "cuda":
            _preload()
        available = ort.get_available_providers()
        if _PROVIDERS[self.kind] not in available:
            raise DeviceError(
                f"device {self}: this ONNX Runtime ({ort.__version__}) has no {_PROVIDERS[self.kind]}; it has "
                f"{', '.join(available)}. Install streamcell[gpu] in place of streamcell[serve], on a machine "
                "with an NVIDIA driver, CUDA and cuDNN."
            )
        if self.kind == "cuda":
            # The providers are those that were compiled in, whether or not there is a card.
            try:
                found = cards(cuda_runtime()[0])
            except CudaError as error:
                raise DeviceError(f"device {self}: {error}") from error
            if self.index >= found:
                raise DeviceError(
                    f"device {self}: this machine has {found} CUDA devices"
                    + (f", cuda:0 to cuda:{found - 1}" if found else "")
                )

    def session(
        self,
        model: bytes,
        *,
        intra_op_threads: int,
        stream: int = 0,
        graphs: bool = False,
        limit: TimeLimit | None = None,
    ) -> ort.InferenceSession:
        """A session that runs on this device and nowhere else by accident.

        Args:
            model: a serialized graph.
            intra_op_threads: ONNX Runtime's threads within an operator.
            stream: the CUDA stream to run on; 0: one of ONNX Runtime's own.
            graphs: whether runs are to be captured as CUDA graphs.
            limit: ends the making of the session when it takes too long.

        Raises:
            DeviceError: ONNX Runtime fell back to another provider, or cannot capture this graph.
        """
        self.check()
        options = ort.SessionOptions()
        options.intra_op_num_threads = intra_op_threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        # Errors are raised with the same text. Printed too, a client that has runs fail could fill a disk.
        options.log_severity_level = 4
        # Nodes of constants are computed as the session is made. A small file can name huge ones.
        options.add_session_config_entry(_FOLDED_BYTES, str(max(_LEAST_FOLDED_BYTES, 4 * len(model))))
        if limit is not None:
            limit.cover(options)
        provider: Any = _PROVIDERS[self.kind]
        if self.kind == "cuda":
            provider = (provider, self._cuda_options(stream, graphs))
            options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
        try:
            session = ort.InferenceSession(model, options, providers=[provider])
        except Exception as error:  # ONNX Runtime's errors share no base class
            if not graphs:
                raise
            raise DeviceError(f"device {self}: no CUDA graph of this model: {error}") from error
        if _PROVIDERS[self.kind] not in session.get_providers():
            raise DeviceError(
                f"device {self}: ONNX Runtime could not start {_PROVIDERS[self.kind]} and fell back to "
                f"{', '.join(session.get_providers())}; its log above says what is missing (driver, CUDA or cuDNN)"
            )
        # Else a later error would make it run on the CPU from then on.
        session.disable_fallback()
        if self.kind == "cuda" and (elsewhere := operators_elsewhere(session, _PROVIDERS[self.kind])):
            _log.warning(
                "operators without a CUDA kernel run on the CPU", device=str(self), operators=elsewhere
            )
        return session

    def _cuda_options(self, stream: int, graphs: bool) -> dict[str, str]:
        options = {
            "device_id": str(self.index),
            # By default the arena doubles; shapes are fixed here, so the requested size is enough.
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": str(int(self.tf32)),
        }
        if stream:
            options["user_compute_stream"] = str(stream)
        if graphs:
            options["enable_cuda_graph"] = "1"
        return options

    def copies(self) -> Copies:
        """What moves bytes between the server's memory and the device's.

        Raises:
            DeviceError: the CUDA runtime cannot be loaded, or has no such card.
        """
        if self.kind == "cpu":
            return HostCopies()
        self.check()
        try:
            return cuda_copies(self.index)
        except CudaError as error:
            raise DeviceError(f"device {self}: {error}") from error

    def place(self, array: np.ndarray[Any, Any]) -> ort.OrtValue:
        """`array` on the device: the same memory on the CPU, a copy on a card."""
        if self.kind == "cpu":
            return ort.OrtValue.ortvalue_from_numpy(array.copy() if self.apart else array)
        return ort.OrtValue.ortvalue_from_numpy(array, self.kind, self.index)


@cache
def _preload() -> None:
    """Load the CUDA libraries of Python packages, once a process."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


def operators_elsewhere(session: ort.InferenceSession, provider: str) -> dict[str, int]:
    """Which operators, and how many nodes of each, `session` runs on another provider than `provider`.

    Empty where the session was made without `RECORD_ASSIGNMENT`.
    """
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception:  # ONNX Runtime's errors share no base class
        return {}
    ops = Counter(node.op_type for part in parts if part.ep_name != provider for node in part.get_nodes())
    return dict(sorted(ops.items()))
