"""Clients that send chunks of several steps by every way there is, each answer held against ONNX Runtime's."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from streamcell.proto import pb
from streamcell.proto import rpc as our_rpc
from streamcell.proto.inference import oip, rpc
from streamcell.service.repository.model_file import open_model

INPUT, ECHO = 3, 8  # sizes of the models' steps
MARK = b"\xa5\x5a\x4b"  # in every value of an honest client's input to the echo
_PATIENCE_S = 60

Array = np.ndarray[Any, np.dtype[np.float32]]


def echo_model(folder: Path) -> None:
    """Write echo.onnx, which answers float32[batch, time, 8] with itself."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "t", ECHO]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "echo", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "echo.onnx")
    (folder / "echo.toml").write_text('layout = "batch_time"\ninputs = ["x"]\noutputs = ["y"]\n')


class Truth:
    """One session of a model, run by ONNX Runtime alone."""

    def __init__(self, path: Path) -> None:
        self._signature = open_model(path, path.stem).signature
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # more of them would wait for each other, busily
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.reset()

    def reset(self) -> None:
        """Back to the initial state."""
        self._states = {}
        for state in self._signature.states:
            shape = [*state.shape]
            shape.insert(state.batch_axis, 1)
            self._states[state.input] = np.full(shape, state.initial, state.dtype)

    def run(self, x: Array) -> Array:
        """The outputs of the next steps, float32[steps, size]."""
        signature = self._signature
        feeds: dict[str, Any] = {signature.inputs[0].name: x[None], **self._states}
        if signature.lengths:
            feeds[signature.lengths] = np.asarray([len(x)], np.int32)
        names = [signature.outputs[0].name, *(state.output for state in signature.states)]
        y, *states = self._session.run(names, feeds)
        self._states = {state.input: new for state, new in zip(self._signature.states, states, strict=True)}
        found: Array = y[0]
        return found


class Talk:
    """One bidirectional call: a message, then its answer."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._asks: queue.Queue[Any] = queue.Queue()
        self._answers = call(iter(self._asks.get, None))

    def ask(self, message: Any) -> Any:
        """The answer to `message`."""
        self._asks.put(message)
        return next(self._answers)

    def end(self) -> None:
        """Close it and read it out."""
        self._asks.put(None)
        for _ in self._answers:
            pass


class Client(threading.Thread):
    """An honest client: one exchange after another until it is told to stop. `wrong` says what went wrong."""

    def __init__(self, target: str, models: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
        self.rng = np.random.default_rng(seed)
        self.seed = seed
        self.models = models
        self.going = True
        self.exchanges = 0
        self.wrong = ""

    def run(self) -> None:
        """Go on until told to stop, or until an answer is wrong."""
        try:
            conversation = self.converse()
            while self.going and not self.wrong:
                next(conversation)
                self.exchanges += 1
            conversation.close()
        except Exception as error:
            self.wrong = f"{type(self).__name__}: {error!r}"
        finally:
            self.channel.close()

    def converse(self) -> Iterator[None]:
        """Yields after each answer."""
        raise NotImplementedError

    def noise(self, *shape: int) -> Array:
        """An input of the LSTM's."""
        return self.rng.standard_normal((*shape, INPUT)).astype(np.float32)

    def marked(self, *shape: int) -> Array:
        """An input of the echo's that says whose it is: every value has `MARK` in it."""
        words = 0x4B5AA500 | self.rng.integers(0, 256, (*shape, ECHO))
        return words.astype("<u4").view(np.float32)

    def steps(self) -> int:
        """Of a message: mostly several."""
        return int(self.rng.choice([1, 2, 2, 3, 5, 8, 70]))

    def hold(self, came: bytes, expected: Array) -> None:
        """Note a wrong answer."""
        y = np.frombuffer(came, np.float32)
        if y.size != expected.size or not np.allclose(y, expected.ravel(), rtol=1e-5, atol=1e-5):
            wanted = expected.ravel()[:8]
            self.wrong = f"{type(self).__name__}, exchange {self.exchanges}: got {y[:8]}…, expected {wanted}…"


class Native(Client):
    """A stream of chunks to the LSTM."""

    def converse(self) -> Iterator[None]:
        truth = Truth(self.models / "lstm.onnx")
        talk = Talk(our_rpc.StreamCellStub(self.channel).Stream)
        talk.ask(pb.StreamRequest(open=pb.OpenSession(model="lstm")))
        try:
            while True:
                x = self.noise(self.steps())
                self.hold(talk.ask(pb.StreamRequest(inputs=[x.tobytes()])).outputs[0], truth.run(x))
                yield
        finally:
            talk.end()


class NativeEcho(Client):
    """A stream of chunks to the echo."""

    def converse(self) -> Iterator[None]:
        talk = Talk(our_rpc.StreamCellStub(self.channel).Stream)
        talk.ask(pb.StreamRequest(open=pb.OpenSession(model="echo")))
        try:
            while True:
                x = self.marked(self.steps())
                self.hold(talk.ask(pb.StreamRequest(inputs=[x.tobytes()])).outputs[0], x)
                yield
        finally:
            talk.end()


class Frames(Client):
    """Frames of four sessions on the LSTM, of equal and of different lengths."""

    def converse(self) -> Iterator[None]:
        truths = [Truth(self.models / "lstm.onnx") for _ in range(4)]
        talk = Talk(our_rpc.StreamCellStub(self.channel).StreamFrames)
        talk.ask(pb.FrameRequest(open=pb.OpenFrames(model="lstm"), open_sessions=4))
        try:
            while True:
                equal = self.steps()
                lengths = [equal if self.exchanges % 2 else self.steps() for _ in truths]
                xs = [self.noise(length) for length in lengths]
                expected = np.concatenate([truth.run(x) for truth, x in zip(truths, xs, strict=True)])
                answer = talk.ask(
                    pb.FrameRequest(
                        handles=np.arange(4).astype("<u4").tobytes(),
                        lengths=np.asarray(lengths, "<u4").tobytes(),
                        inputs=[np.concatenate(xs).tobytes()],
                    )
                )
                if answer.errors:
                    self.wrong = f"Frames: {answer.errors}"
                self.hold(answer.outputs[0], expected)
                yield
        finally:
            talk.end()


class Predicts(Client):
    """Calls of Predict with several rows, to the echo and to the LSTM."""

    def converse(self) -> Iterator[None]:
        stub = our_rpc.StreamCellStub(self.channel)
        truth = Truth(self.models / "lstm.onnx")
        while True:
            x = self.marked(2, self.steps())
            request = pb.PredictRequest(model="echo", inputs=[x.tobytes()], batch=2)
            self.hold(stub.Predict(request, timeout=_PATIENCE_S).outputs[0], x)
            truth.reset()
            x = self.noise(self.steps())
            request = pb.PredictRequest(model="lstm", inputs=[x.tobytes()])
            self.hold(stub.Predict(request, timeout=_PATIENCE_S).outputs[0], truth.run(x))
            yield


def _infer(model: str, x: Array, sequence: int = 0, start: bool = False) -> Any:
    message = oip.ModelInferRequest(model_name=model, id=str(sequence), raw_input_contents=[x.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=x.shape)
    if sequence:
        message.parameters["sequence_id"].int64_param = sequence
        if start:
            message.parameters["sequence_start"].bool_param = True
    return message


class Sequences(Client):
    """Sequences of the Open Inference Protocol, a call a request."""

    def converse(self) -> Iterator[None]:
        stub = rpc.GRPCInferenceServiceStub(self.channel)
        truth = Truth(self.models / "lstm.onnx")
        start = True
        while True:
            x = self.noise(self.steps())
            answer = stub.ModelInfer(_infer("lstm", x, 1000 + self.seed, start), timeout=_PATIENCE_S)
            self.hold(answer.raw_output_contents[0], truth.run(x))
            start = False
            yield


class Infers(Client):
    """Requests of the Open Inference Protocol without a sequence, of several rows, to the echo."""

    def converse(self) -> Iterator[None]:
        stub = rpc.GRPCInferenceServiceStub(self.channel)
        while True:
            x = self.marked(*self.rng.choice([[1, 1], [1, 2], [1, 3], [2, 4]]))
            answer = stub.ModelInfer(_infer("echo", x), timeout=_PATIENCE_S)
            self.hold(answer.raw_output_contents[0], x)
            yield


class StreamedSequences(Client):
    """Two sequences and requests without one on a stream of the Open Inference Protocol."""

    def converse(self) -> Iterator[None]:
        truths = [Truth(self.models / "lstm.onnx") for _ in range(2)]
        talk = Talk(rpc.GRPCInferenceServiceStub(self.channel).ModelStreamInfer)
        try:
            while True:
                for at, truth in enumerate(truths):
                    x = self.noise(self.steps())
                    request = _infer("lstm", x, 2000 + 2 * self.seed + at, self.exchanges == 0)
                    self._hold(talk.ask(request), truth.run(x))
                x = self.marked(1, self.steps())
                self._hold(talk.ask(_infer("echo", x)), x)
                yield
        finally:
            talk.end()

    def _hold(self, answer: Any, expected: Array) -> None:
        if answer.error_message:
            self.wrong = answer.error_message
        else:
            self.hold(answer.infer_response.raw_output_contents[0], expected)


CLIENTS: tuple[type[Client], ...] = (
    Native, NativeEcho, Frames, Predicts, Sequences, Infers, StreamedSequences,
)  # fmt: skip
