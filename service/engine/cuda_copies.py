"""Copies between the server's memory and a card's, through the CUDA runtime that ONNX Runtime itself has loaded.

ONNX Runtime's Python API copies from pageable memory and waits each time. Here the staging memory is pinned, and
copies and runs queue on one stream, so that a run waits once, at its end.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Bytes = npt.NDArray[np.uint8]
_NON_BLOCKING = 1  # cudaStreamNonBlocking
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost


class CudaError(RuntimeError):
    """A call of the CUDA runtime failed, or the runtime cannot be loaded."""


class Copies(Protocol):
    """Moves bytes for one engine. `stream` is the CUDA stream it queues them on, 0 where there is none."""

    stream: int

    def buffer(self, size: int) -> Bytes:
        """Host memory of `size` bytes, zeroed, to copy from and to."""

    def copy_in(self, device: int, host: int, size: int) -> None:
        """Queue a copy of `size` bytes from the address `host` to the device's address `device`."""

    def copy_out(self, host: int, device: int, size: int) -> None:
        """Queue a copy of `size` bytes from the device to the host, and wait for all that is queued."""

    def wait(self) -> None:
        """Wait for all that is queued."""

    def close(self) -> None:
        """Give memory and stream back. Nothing may use them any more."""


class HostCopies:
    """Both sides are the host's memory."""

    stream = 0

    def buffer(self, size: int) -> Bytes:
        """See `Copies`."""
        return np.zeros(size, np.uint8)

    def copy_in(self, device: int, host: int, size: int) -> None:
        """See `Copies`."""
        ctypes.memmove(device, host, size)

    def copy_out(self, host: int, device: int, size: int) -> None:
        """See `Copies`."""
        ctypes.memmove(host, device, size)

    def wait(self) -> None:
        """See `Copies`."""

    def close(self) -> None:
        """See `Copies`."""


class CudaCopies:
    """Pinned host memory and copies on a stream of their own, for one card."""

    def __init__(self, library: Any, index: int) -> None:
        """`library`: the CUDA runtime as ctypes loaded it; `index`: the card.

        Raises:
            CudaError: there is no such card.
        """
        self._library = library
        self._index = index
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        for name, arguments in {
            "cudaSetDevice": (ctypes.c_int,),
            "cudaStreamCreateWithFlags": (ctypes.POINTER(pointer), ctypes.c_uint),
            "cudaStreamSynchronize": (pointer,),
            "cudaStreamDestroy": (pointer,),
            "cudaHostAlloc": (ctypes.POINTER(pointer), size, ctypes.c_uint),
            "cudaFreeHost": (pointer,),
            "cudaMemcpyAsync": (pointer, pointer, size, ctypes.c_int, pointer),
        }.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        library.cudaGetErrorString.argtypes, library.cudaGetErrorString.restype = (
            (ctypes.c_int,),
            ctypes.c_char_p,
        )
        self._buffers: list[int] = []
        self._copy = library.cudaMemcpyAsync
        self._synchronize = library.cudaStreamSynchronize
        made = pointer()
        self._check("cudaSetDevice", library.cudaSetDevice(index))
        self._check(
            "cudaStreamCreateWithFlags",
            library.cudaStreamCreateWithFlags(ctypes.byref(made), _NON_BLOCKING),
        )
        self.stream: int = made.value or 0

    def _check(self, name: str, code: int) -> None:
        if code:
            text = self._library.cudaGetErrorString(code)
            raise CudaError(f"{name} failed: {text.decode() if text else code}")

    def buffer(self, size: int) -> Bytes:
        """See `Copies`. The memory is pinned."""
        made = ctypes.c_void_p()
        self._check("cudaSetDevice", self._library.cudaSetDevice(self._index))
        self._check("cudaHostAlloc", self._library.cudaHostAlloc(ctypes.byref(made), max(size, 1), 0))
        assert made.value is not None
        self._buffers.append(made.value)
        buffer: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(made.value))
        buffer.fill(0)
        return buffer

    def copy_in(self, device: int, host: int, size: int) -> None:
        """See `Copies`."""
        if code := self._copy(device, host, size, _TO_DEVICE, self.stream):
            self._check("cudaMemcpyAsync", code)

    def copy_out(self, host: int, device: int, size: int) -> None:
        """See `Copies`."""
        if code := self._copy(host, device, size, _TO_HOST, self.stream):
            self._check("cudaMemcpyAsync", code)
        self.wait()

    def wait(self) -> None:
        """See `Copies`."""
        if code := self._synchronize(self.stream):
            self._check("cudaStreamSynchronize", code)

    def close(self) -> None:
        """See `Copies`."""
        if self.stream:
            self.wait()
            while self._buffers:
                self._check("cudaFreeHost", self._library.cudaFreeHost(self._buffers.pop()))
            self._check("cudaStreamDestroy", self._library.cudaStreamDestroy(self.stream))
            self.stream = 0


def cuda_copies(index: int) -> CudaCopies:
    """For the card `index`.

    Raises:
        CudaError: the CUDA runtime cannot be loaded, or has no such card.
    """
    # The version that this ONNX Runtime was built with, where it says so: its own libraries link to that one.
    built = str(getattr(ort, "cuda_version", "") or "").partition(".")[0]
    names = [f"libcudart.so.{major}" for major in dict.fromkeys(filter(None, (built, "13", "12")))]
    problems = []
    for name in names:
        try:
            library = ctypes.CDLL(name)
        except OSError as error:
            problems.append(str(error))
        else:
            return CudaCopies(library, index)
    raise CudaError(f"the CUDA runtime cannot be loaded: {'; '.join(problems)}")
