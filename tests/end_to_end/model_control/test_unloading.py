"""Unloading by request: who is let finish, who is refused, and what is given back."""

from __future__ import annotations

import gc
import queue
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from streamcell.client import StreamCellError, connect
from streamcell.service import Settings
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import load
from streamcell.service.repository.model_file import discover
from tests.support.model_control import Model, Served, Start, X, reason, refused
from tests.support.waiting import waited

PATIENCE_S = 60


class Traffic(threading.Thread):
    """A client that runs sequence after sequence and checks every output, until it is told to stop or is refused."""

    def __init__(self, served: Served, model: Model, stateless: bool = False) -> None:
        super().__init__(daemon=True)
        self.client = connect(served.server.target)
        self.model = model
        self.stateless = stateless
        self.finish = threading.Event()
        self.sequences = self.wrong = 0
        self.reason = ""
        self.start()

    def run(self) -> None:
        try:
            while not self.finish.is_set():
                if self.stateless:
                    y = self.client.predict("mlp", X[None])[0]
                else:
                    with self.client.session("lstm") as session:
                        y = np.stack([session.step(x) for x in X])
                self.wrong += not self.model.gave(y)
                self.sequences += 1
        except StreamCellError as error:
            self.reason = error.reason
        self.client.close()


@pytest.mark.conformance
def test_unloading_waits_for_live_sessions_and_takes_no_new_ones(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    made["one"].put(tmp_path / "models" / "lstm.onnx")
    served = start("--load-model", "lstm", "--unload-grace", "60")
    held, pool = served.client.session("lstm"), served.client.pool("lstm", 2)
    first = held.run(X[:5])
    pool.step(X[:2])
    loads = [Traffic(served, made["one"]) for _ in range(4)]
    assert eventually(lambda: min(thread.sequences for thread in loads) > 2)
    done = threading.Event()
    call = served.triton._client_stub.RepositoryModelUnload.future(unload_of("lstm"))
    call.add_done_callback(lambda _: done.set())
    for thread in loads:  # each ends with the sequence at hand done, and the next one refused
        thread.join(PATIENCE_S)
    assert {thread.reason for thread in loads} <= {"MODEL_UNLOADING", "MODEL_NOT_FOUND"}
    assert sum(thread.wrong for thread in loads) == 0
    assert reason(lambda: served.client.session("lstm")) == "MODEL_UNLOADING"
    assert reason(lambda: pool.open_members(1)) == "MODEL_UNLOADING"
    assert served.index() == {("lstm", "1"): "UNLOADING"}
    assert not served.ready()
    assert not served.triton.is_model_ready("lstm")
    assert served.client.ready()
    assert not done.is_set()
    assert made["one"].gave(np.concatenate([first, held.run(X[5:])]))
    held.close()
    assert not done.is_set()
    pool.close()
    assert done.wait(PATIENCE_S)
    call.result()
    assert eventually(served.released())
    assert reason(lambda: served.client.session("lstm")) == "MODEL_NOT_FOUND"
    assert served.index() == {("lstm", "1"): ""}
    assert 'model="lstm"' not in served.server.metrics()
    served.triton.load_model("lstm")
    with served.client.session("lstm") as session:
        assert made["one"].gave(session.run(X))


def unload_of(name: str) -> Any:
    return tritonclient.grpc.service_pb2.RepositoryModelUnloadRequest(model_name=name)


def test_sessions_left_after_the_grace_end_with_a_typed_error(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    made["one"].put(tmp_path / "models" / "lstm.onnx")
    served = start("--load-model", "lstm", "--unload-grace", "0.3")
    session, pool = served.client.session("lstm"), served.client.pool("lstm", 2)
    session.run(X[:5])
    pool.step(X[:2])
    began_s = time.monotonic()
    served.triton.unload_model("lstm")
    assert time.monotonic() - began_s >= 0.3
    assert reason(lambda: session.run(X[5:])) == "MODEL_UNLOADED"
    assert reason(lambda: pool.step(X[:2])) == "MODEL_UNLOADED"
    assert eventually(served.released())
    assert list(served.client.sessions()) == []


class Sequences:
    """Sequences of Triton's client over one stream, a step at a time."""

    def __init__(self, served: Served) -> None:
        self.answers: queue.Queue[Any] = queue.Queue()
        self.triton = tritonclient.grpc.InferenceServerClient(served.server.target)
        self.triton.start_stream(lambda result, error: self.answers.put(error or result))

    def step(self, sequence: int, at: int, *, end: bool = False) -> tuple[str, np.ndarray]:
        """Version and output of one step; raises the error that came instead."""
        tensor = tritonclient.grpc.InferInput("x", [1, 3], "FP32")
        tensor.set_data_from_numpy(X[at : at + 1])
        self.triton.async_stream_infer(
            "lstm", [tensor], sequence_id=sequence, sequence_start=at == 0, sequence_end=end
        )
        answer = self.answers.get(timeout=PATIENCE_S)
        if isinstance(answer, InferenceServerException):
            raise answer
        (output,) = answer.get_response().outputs
        return answer.get_response().model_version, answer.as_numpy(output.name)[0]

    def error(self, sequence: int, at: int) -> str:
        with pytest.raises(InferenceServerException) as caught:
            self.step(sequence, at)
        return str(caught.value.message())

    def close(self) -> None:
        self.triton.stop_stream()
        self.triton.close()


def test_sequences_of_triton_s_clients_stay_on_their_version_and_end_as_sessions_do(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    made["one"].put(tmp_path / "models" / "lstm" / "1" / "model.onnx")
    served = start("--load-model", "lstm", "--unload-grace", "5")
    sequences = Sequences(served)
    old = [sequences.step(1, at) for at in range(7)]
    made["two"].put(served.folder / "lstm" / "2" / "model.onnx")
    served.triton.load_model("lstm")
    new = []
    for at in range(13):
        old.append(sequences.step(1, at + 7, end=at == 12))
        new.append(sequences.step(2, at))
    assert {version for version, _ in old} == {"1"}
    assert {version for version, _ in new} == {"2"}
    assert made["one"].gave(np.stack([y for _, y in old]))
    assert made["two"].gave(np.stack([y for _, y in new]))
    assert eventually(served.released())
    unloading = served.triton._client_stub.RepositoryModelUnload.future(unload_of("lstm"))
    assert eventually(lambda: served.index()["lstm", "2"] == "UNLOADING")
    assert "MODEL_UNLOADING" in sequences.error(3, 0)
    new.append(sequences.step(2, 13))  # within the grace
    assert made["two"].gave(np.stack([y for _, y in new]))
    unloading.result(PATIENCE_S)
    lost = sequences.error(2, 14)
    assert "MODEL_UNLOADED" in lost or "MODEL_NOT_FOUND" in lost
    sequences.close()


def test_unloading_a_model_in_use_is_refused_where_so_configured(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    made["one"].put(tmp_path / "models" / "lstm.onnx")
    served = start("--load-model", "lstm", "--unload", "refuse")
    with served.client.session("lstm") as session:
        first = session.run(X[:5])
        status, text = refused(lambda: served.triton.unload_model("lstm"))
        assert status == "StatusCode.FAILED_PRECONDITION"
        assert "live sessions" in text
        with served.client.session("lstm") as other:
            assert made["one"].gave(other.run(X))
        assert made["one"].gave(np.concatenate([first, session.run(X[5:])]))
        assert served.ready()
    assert waited(lambda: served.server.metric("streamcell_errors_total", reason="MODEL_IN_USE") == 1)

    def unload() -> bool:  # the client's end of a session comes before the server's
        try:
            served.triton.unload_model("lstm")
        except InferenceServerException:
            return False
        return True

    assert eventually(unload)
    assert reason(lambda: served.client.session("lstm")) == "MODEL_NOT_FOUND"


def test_stateless_models_swap_and_go_under_load(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    made["mlp"].put(tmp_path / "models" / "mlp" / "1" / "model.onnx")
    served = start("--load-model", "mlp", "--unload", "refuse")
    stop = threading.Event()
    seen: list[set[str]] = [set() for _ in range(3)]
    errors: list[str] = []

    def predict(found: set[str]) -> None:
        with connect(served.server.target) as client:
            while not stop.is_set():
                try:
                    y = client.predict("mlp", X[None])[0]
                except StreamCellError as error:
                    errors.append(error.reason)
                    return
                found.add("one" if made["mlp"].gave(y) else "two" if made["mlp2"].gave(y) else "wrong")

    threads = [threading.Thread(target=predict, args=(found,)) for found in seen]
    for thread in threads:
        thread.start()
    assert eventually(lambda: all(seen))
    made["mlp2"].put(served.folder / "mlp" / "2" / "model.onnx")
    served.triton.load_model("mlp")
    assert eventually(lambda: all("two" in found for found in seen))
    assert eventually(served.released("1", "mlp"))
    assert errors == []
    served.triton.unload_model("mlp")  # calls under way are answered, later ones refused
    for thread in threads:
        thread.join(PATIENCE_S)
    stop.set()
    assert set.union(*seen) == {"one", "two"}
    assert len(errors) == 3
    assert set(errors) <= {"MODEL_UNLOADING", "MODEL_NOT_FOUND"}


def test_a_shutdown_does_not_wait_for_an_unload(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    made["one"].put(tmp_path / "models" / "lstm.onnx")
    served = start("--load-model", "lstm", "--unload-grace", "600", "--grace-s", "0.2")
    session = served.client.session("lstm")
    session.run(X[:1])
    call = served.triton._client_stub.RepositoryModelUnload.future(unload_of("lstm"))
    assert eventually(lambda: served.index() == {("lstm", "1"): "UNLOADING"})
    assert served.server.stop(60) == 0
    assert reason(lambda: session.run(X[1:])) == "SERVER_DRAINING"
    # With the last session gone the unloading may have come to its end before the server did.
    error = call.exception(PATIENCE_S)
    assert error is None or error.code().name == "UNAVAILABLE"


def test_a_model_that_is_let_go_leaves_nothing_to_the_garbage_collector(
    made: dict[str, Model], tmp_path: Path
) -> None:
    made["one"].put(tmp_path / "lstm.onnx")
    (file,) = discover(tmp_path)
    gc.disable()
    try:
        model = load(file, Settings(models=tmp_path), Device())
        model.metrics.attach(model.pool)
        kept = [weakref.ref(part) for part in (model.engine, model.batcher, model.runner)]
        model.release()
        del model
        assert [part() for part in kept] == [None, None, None]
    finally:
        gc.enable()


def test_loads_and_unloads_give_memory_and_threads_back(
    start: Start, made: dict[str, Model], eventually: Any
) -> None:
    slots = 10_000
    served = start("--max-sessions", str(slots))
    made["one"].put(served.folder / "lstm.onnx")
    process = psutil.Process(served.server.pid)

    def cycle() -> None:
        served.triton.load_model("lstm")
        with served.client.pool("lstm", slots) as pool:  # every slot's memory is touched
            pool.step(np.ones((slots, 3), np.float32))
        served.triton.unload_model("lstm")

    for _ in range(10):
        cycle()
    threads, memory = process.num_threads(), process.memory_info().rss
    for _ in range(20):
        cycle()
    assert eventually(lambda: sum(entry["event"] == "model released" for entry in served.server.log) == 30)
    # Threads end after they have let a model go.
    assert eventually(lambda: process.num_threads() <= threads + 1)
    # The states of 10,000 sessions alone are 2.4 MiB: kept, twenty times that would be 48 MiB.
    assert eventually(lambda: process.memory_info().rss - memory < 16 * 1024 * 1024)
