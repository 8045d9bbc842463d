"""Copies between the server's memory and a card's, through the CUDA runtime that ONNX Runtime itself has loaded.

ONNX Runtime's Python API copies from pageable memory and waits each time. Here the staging memory is pinned, and
copies and runs queue on one stream, so that a run waits once, at its end.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Bytes = npt.NDArray[np.uint8]
_NON_BLOCKING = 1  # cudaStreamNonBlocking
_TO_DEVICE, _TO_HOST, _WITHIN = 1, 2, 3  # cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, …DeviceToDevice


class CudaError(RuntimeError):
    """A call of the CUDA runtime failed, or the runtime cannot be loaded."""


class Copies(Protocol):
    """Moves bytes for one engine. `stream`: the CUDA stream on which it queues them, 0 for none."""

    stream: int

    def buffer(self, size: int) -> Bytes:
        """Host memory of `size` bytes, zeroed, to copy from and to."""

    def copy_in(self, device: int, host: int, size: int) -> None:
        """Queue a copy of `size` bytes from the address `host` to the device's address `device`."""

    def queue_out(self, host: int, device: int, size: int) -> None:
        """Queue a copy of `size` bytes from the device's address `device` to the address `host`."""

    def copy_out(self, host: int, device: int, size: int) -> None:
        """Queue a copy of `size` bytes from the device to the host, and wait for all that is queued."""

    def copy_within(self, target: int, source: int, size: int) -> None:
        """Queue a copy of `size` bytes from one of the device's addresses to another."""

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

    def queue_out(self, host: int, device: int, size: int) -> None:
        """See `Copies`."""
        ctypes.memmove(host, device, size)

    def copy_out(self, host: int, device: int, size: int) -> None:
        """See `Copies`."""
        ctypes.memmove(host, device, size)

    def copy_within(self, target: int, source: int, size: int) -> None:
        """See `Copies`."""
        ctypes.memmove(target, source, size)

    def wait(self) -> None:
        """See `Copies`."""

    def close(self) -> None:
        """See `Copies`."""


class CudaCopies:
    """Pinned host memory and copies on a stream of their own, for one card."""

    def __init__(self, library: Any, index: int, queueing: Any = None) -> None:
        """Make the stream.

        Args:
            library: the CUDA runtime as ctypes loaded it.
            index: the card.
            queueing: the same, loaded so that a call keeps the GIL: for calls that only queue work. A call that gives
                the GIL away for a microsecond may wait milliseconds to get it back from busy Python threads.

        Raises:
            CudaError: there is no such card.
        """
        self._library = library
        self._index = index
        queueing = queueing or library
        pointer = ctypes.c_void_p
        for each in (library, queueing):
            _declare(each)
        self._buffers: list[int] = []
        self._copy = queueing.cudaMemcpyAsync
        self._synchronize = library.cudaStreamSynchronize
        made = pointer()
        self._check("cudaSetDevice", library.cudaSetDevice(index))
        self._check(
            "cudaStreamCreateWithFlags",
            library.cudaStreamCreateWithFlags(ctypes.byref(made), _NON_BLOCKING),
        )
        self.stream: int = made.value or 0

    def _check(self, name: str, code: int) -> None:
        _check(self._library, name, code)

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

    def queue_out(self, host: int, device: int, size: int) -> None:
        """See `Copies`."""
        if code := self._copy(host, device, size, _TO_HOST, self.stream):
            self._check("cudaMemcpyAsync", code)

    def copy_out(self, host: int, device: int, size: int) -> None:
        """See `Copies`."""
        self.queue_out(host, device, size)
        self.wait()

    def copy_within(self, target: int, source: int, size: int) -> None:
        """See `Copies`."""
        if code := self._copy(target, source, size, _WITHIN, self.stream):
            self._check("cudaMemcpyAsync", code)

    def wait(self) -> None:
        """See `Copies`."""
        if code := self._synchronize(self.stream):
            self._check("cudaStreamSynchronize", code)

    def close(self) -> None:
        """See `Copies`. All is given back though some of it fails; then the first error is raised."""
        if not self.stream:
            return
        stream, self.stream = self.stream, 0
        free, library = self._buffers, self._library
        self._buffers = []
        calls = [
            ("cudaStreamSynchronize", partial(self._synchronize, stream)),
            *(("cudaFreeHost", partial(library.cudaFreeHost, buffer)) for buffer in free),
            ("cudaStreamDestroy", partial(library.cudaStreamDestroy, stream)),
        ]
        errors = []
        for name, call in calls:
            try:
                self._check(name, call())
            except CudaError as error:
                errors.append(error)
        if errors:
            raise errors[0]


def _declare(library: Any) -> None:
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, arguments in {
        "cudaGetDeviceCount": (ctypes.POINTER(ctypes.c_int),),
        "cudaSetDevice": (ctypes.c_int,),
        "cudaStreamCreateWithFlags": (ctypes.POINTER(pointer), ctypes.c_uint),
        "cudaStreamSynchronize": (pointer,),
        "cudaStreamDestroy": (pointer,),
        "cudaHostAlloc": (ctypes.POINTER(pointer), size, ctypes.c_uint),
        "cudaFreeHost": (pointer,),
        "cudaMemcpyAsync": (pointer, pointer, size, ctypes.c_int, pointer),
        "cudaGetLastError": (),
    }.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    library.cudaGetErrorString.argtypes = (ctypes.c_int,)
    library.cudaGetErrorString.restype = ctypes.c_char_p


def _check(library: Any, name: str, code: int) -> None:
    if code:
        # ONNX Runtime asks for the thread's last error after each kernel, and would take this one for its own.
        library.cudaGetLastError()
        text = library.cudaGetErrorString(code)
        raise CudaError(f"{name} failed: {text.decode() if text else code}")


def cards(library: Any) -> int:
    """How many CUDA devices the machine has.

    Raises:
        CudaError: the CUDA runtime finds no driver, or an incompatible one.
    """
    _declare(library)
    count = ctypes.c_int()
    _check(library, "cudaGetDeviceCount", library.cudaGetDeviceCount(ctypes.byref(count)))
    return count.value


def cuda_copies(index: int) -> CudaCopies:
    """For the card `index`.

    Raises:
        CudaError: the CUDA runtime cannot be loaded, or has no such card.
    """
    library, queueing = cuda_runtime()
    return CudaCopies(library, index, queueing)


def cuda_runtime() -> tuple[Any, Any]:
    """The CUDA runtime, loaded so that calls give the GIL away, and so that they keep it.

    Raises:
        CudaError: it cannot be loaded.
    """
    # The version that this ONNX Runtime was built with, if it says so: its own libraries link to it.
    built = str(getattr(ort, "cuda_version", "") or "").partition(".")[0]
    names = [f"libcudart.so.{major}" for major in dict.fromkeys(filter(None, (built, "13", "12")))]
    problems = []
    for name in names:
        try:
            return ctypes.CDLL(name), ctypes.PyDLL(name)
        except OSError as error:
            problems.append(str(error))
    raise CudaError(f"the CUDA runtime cannot be loaded: {'; '.join(problems)}")
