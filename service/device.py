"""Where a model runs. The one seam between the CPU and CUDA: providers, allocation, and no silent fallback."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class DeviceError(RuntimeError):
    """The device that was asked for cannot be had; the text says why."""


@dataclass(frozen=True)
class Device:
    """`cpu`, or `cuda` with the index of the card."""

    kind: str = "cpu"
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> Device:
        """Read "cpu", "cuda" or "cuda:N".

        Raises:
            DeviceError: `text` is none of these.
        """
        match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", text.strip().lower())
        if match is None or (match[1] == "cpu" and match[2] is not None):
            raise DeviceError(f"device {text!r}: expected 'cpu', 'cuda' or 'cuda:N'")
        return cls(match[1], int(match[2] or 0))

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"

    @property
    def on_host(self) -> bool:
        """Whether the device's memory is the host's, so that numpy views it."""
        return self.kind == "cpu"

    def check(self) -> None:
        """Raise DeviceError unless this ONNX Runtime build has a provider for the device."""
        if self.kind == "cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        available = ort.get_available_providers()
        if _PROVIDERS[self.kind] not in available:
            raise DeviceError(
                f"device {self}: this ONNX Runtime ({ort.__version__}) has no {_PROVIDERS[self.kind]}; it has "
                f"{', '.join(available)}. Install streamcell[gpu] in place of streamcell[serve], on a machine "
                "with an NVIDIA driver, CUDA and cuDNN."
            )

    def session(self, model: bytes, *, intra_op_threads: int) -> ort.InferenceSession:
        """A session that runs on this device and nowhere else by accident.

        Raises:
            DeviceError: ONNX Runtime fell back to another provider.
        """
        self.check()
        options = ort.SessionOptions()
        options.intra_op_num_threads = intra_op_threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 3
        provider: Any = _PROVIDERS[self.kind]
        if self.kind == "cuda":
            provider = (provider, {"device_id": str(self.index)})
        session = ort.InferenceSession(model, options, providers=[provider])
        if _PROVIDERS[self.kind] not in session.get_providers():
            raise DeviceError(
                f"device {self}: ONNX Runtime could not start {_PROVIDERS[self.kind]} and fell back to "
                f"{', '.join(session.get_providers())}; its log above says what is missing (driver, CUDA or cuDNN)"
            )
        return session

    def place(self, array: np.ndarray[Any, Any]) -> ort.OrtValue:
        """`array` on the device: the same memory on the CPU, a copy on a card."""
        if self.on_host:
            return ort.OrtValue.ortvalue_from_numpy(array)
        return ort.OrtValue.ortvalue_from_numpy(array, self.kind, self.index)
