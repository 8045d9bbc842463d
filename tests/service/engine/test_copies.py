"""Copies through the CUDA runtime's C interface, with a stand-in for the runtime that works on the host's memory."""

from __future__ import annotations

import ctypes
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from streamcell.benchmarks.parity import compare, engine
from streamcell.service.engine.cuda_copies import CudaCopies, CudaError
from streamcell.service.engine.device import Device
from streamcell.service.load_errors import DeviceError
from streamcell.service.repository.model_file import open_model

STREAM = 0x5EED
POINTER, SIZE = ctypes.c_void_p, ctypes.c_size_t


class Runtime(SimpleNamespace):
    """Functions of C type, so that arguments pass through ctypes as they would to the library."""

    def __init__(self, cards: int = 1) -> None:
        self.calls: Counter[str] = Counter()
        self.memory: dict[int, Any] = {}
        self.cards = cards
        self.last_error = 0
        for name, kinds in {
            "cudaSetDevice": (ctypes.c_int,),
            "cudaStreamCreateWithFlags": (ctypes.POINTER(POINTER), ctypes.c_uint),
            "cudaStreamSynchronize": (POINTER,),
            "cudaStreamDestroy": (POINTER,),
            "cudaHostAlloc": (ctypes.POINTER(POINTER), SIZE, ctypes.c_uint),
            "cudaFreeHost": (POINTER,),
            "cudaMemcpyAsync": (POINTER, POINTER, SIZE, ctypes.c_int, POINTER),
            "cudaGetDeviceCount": (ctypes.POINTER(ctypes.c_int),),
            "cudaGetLastError": (),
        }.items():
            setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(self._counted(name)))
        self.cudaGetErrorString = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)(self._text)

    def _counted(self, name: str) -> Any:
        function = getattr(self, f"_{name}")

        def call(*arguments: Any) -> int:
            self.calls[name] += 1
            code = int(function(*arguments))
            if name != "cudaGetLastError":
                self.last_error = code or self.last_error
            return code

        return call

    def _text(self, code: int) -> int:
        self._kept = ctypes.create_string_buffer(b"invalid device ordinal")
        return ctypes.addressof(self._kept)

    def _cudaGetDeviceCount(self, count: Any) -> int:  # noqa: N802
        count[0] = self.cards
        return 0 if self.cards else 100

    def _cudaGetLastError(self) -> int:  # noqa: N802
        code, self.last_error = self.last_error, 0
        return code

    def _cudaSetDevice(self, index: int) -> int:  # noqa: N802
        return 0 if index < self.cards else 101

    def _cudaStreamCreateWithFlags(self, made: Any, flags: int) -> int:  # noqa: N802
        assert flags == 1
        made[0] = STREAM
        return 0

    def _cudaStreamSynchronize(self, stream: int) -> int:  # noqa: N802
        return int(stream != STREAM)

    _cudaStreamDestroy = _cudaStreamSynchronize  # noqa: N815

    def _cudaHostAlloc(self, made: Any, size: int, flags: int) -> int:  # noqa: N802
        memory = ctypes.create_string_buffer(b"\xff" * size, size)
        made[0] = ctypes.addressof(memory)
        self.memory[ctypes.addressof(memory)] = memory
        return 0

    def _cudaFreeHost(self, pointer: int) -> int:  # noqa: N802
        return 0 if self.memory.pop(pointer, None) is not None else 1

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> int:  # noqa: N802
        assert kind in (1, 2)
        assert stream == STREAM
        ctypes.memmove(to, source, size)
        return 0


def test_bytes_go_in_and_come_out_and_all_is_given_back() -> None:
    runtime = Runtime()
    copies = CudaCopies(runtime, 0)
    assert copies.stream == STREAM
    host, device = copies.buffer(64), np.zeros(64, np.uint8)
    assert not host.any()
    host[:] = np.arange(64)
    copies.copy_in(device.ctypes.data, host.ctypes.data, 64)
    host[:] = 0
    copies.copy_out(host.ctypes.data, device.ctypes.data, 32)
    assert host.tolist() == [*range(32), *[0] * 32]
    assert runtime.calls["cudaStreamSynchronize"] == 1
    copies.close()
    copies.close()
    assert not runtime.memory
    assert runtime.calls["cudaStreamDestroy"] == 1


def test_what_the_runtime_refuses_is_an_error_with_its_words() -> None:
    with pytest.raises(CudaError, match="cudaSetDevice failed: invalid device ordinal"):
        CudaCopies(Runtime(cards=1), 1)
    copies = CudaCopies(Runtime(), 0)
    copies.stream = 7
    with pytest.raises(CudaError, match="cudaStreamSynchronize failed"):
        copies.wait()


def test_an_error_is_not_left_to_be_taken_for_the_next_kernels(models_dir: Path) -> None:
    runtime = Runtime()
    with pytest.raises(CudaError):
        CudaCopies(runtime, 1)
    assert runtime.last_error == 0


def test_all_is_given_back_though_the_stream_has_failed() -> None:
    runtime = Runtime()
    copies = CudaCopies(runtime, 0)
    for _ in range(3):
        copies.buffer(64)
    failing = ctypes.CFUNCTYPE(ctypes.c_int, POINTER)(lambda stream: 700)
    copies._synchronize = failing
    with pytest.raises(CudaError, match="cudaStreamSynchronize failed"):
        copies.close()
    assert not runtime.memory
    assert runtime.calls["cudaStreamDestroy"] == 1
    assert copies.stream == 0
    copies.close()


def test_copies_are_queued_by_calls_that_keep_the_gil() -> None:
    runtime, queueing = Runtime(), Runtime()
    copies = CudaCopies(runtime, 0, queueing)
    host, device = copies.buffer(8), np.arange(8, dtype=np.uint8)
    copies.copy_out(host.ctypes.data, device.ctypes.data, 8)
    assert host.tolist() == list(range(8))
    assert queueing.calls == {"cudaMemcpyAsync": 1}
    assert runtime.calls["cudaStreamSynchronize"] == 1, "what waits gives the GIL away"
    copies.close()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (2, "device cuda:7: this machine has 2 CUDA devices, cuda:0 to cuda:1"),
        (0, "device cuda:7: cudaGetDeviceCount failed"),
    ],
)
def test_a_card_is_counted_not_guessed_from_what_was_compiled_in(
    monkeypatch: pytest.MonkeyPatch, count: int, text: str
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("streamcell.service.engine.device.cuda_runtime", lambda: (Runtime(count),) * 2)
    with pytest.raises(DeviceError, match=text):
        Device("cuda", 7).check()


def test_an_engine_makes_two_copies_a_run(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime()
    monkeypatch.setattr(Device, "copies", lambda self: CudaCopies(runtime, 0))
    file = open_model(models_dir / "lstm.onnx", "lstm")
    one, other = engine(file, Device()), engine(file, Device(apart=True), cuda_graphs=True)
    runtime.calls.clear()
    found = compare(one, other, runs=10)
    assert found.output_error < 1e-5
    # At its end the comparison reads the states of 40 sessions from both pools.
    reads = 2 * 40 * len(file.signature.states)
    assert runtime.calls["cudaMemcpyAsync"] - reads == 20
    assert runtime.calls["cudaStreamSynchronize"] - reads == 10
    other.close()
    assert not runtime.memory
