"""Models come, change and go while the server serves: no session's output is wrong, nothing is kept, errors say why."""

from __future__ import annotations

import asyncio
import gc
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from streamcell.client import Client, NotFound, StreamCellError, connect, connect_async
from streamcell.export import export_model
from streamcell.models import build
from streamcell.service import Settings
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import load
from streamcell.service.repository.model_file import discover

PATIENCE_S = 30
CONFIGS: dict[str, dict[str, Any]] = {
    "lstm": {"kind": "lstm", "input_size": 3, "hidden_size": 16, "output_size": 2, "num_layers": 2},
    "mlp": {"kind": "mlp", "input_size": 3, "hidden_sizes": [16, 16], "output_size": 2},
    "wider": {"kind": "mlp", "input_size": 5, "hidden_sizes": [16], "output_size": 4},
}
X = np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)


class Model:
    """A module of a kind with weights of its own, and its .onnx file's bytes."""

    def __init__(self, kind: str, seed: int, folder: Path) -> None:
        torch.manual_seed(seed)
        self.module = build(CONFIGS[kind]).eval()
        path = folder / f"{kind}-{seed}.onnx"
        export_model(self.module, path, name=kind)
        self.data = path.read_bytes()

    def put(self, path: Path) -> None:
        """Put the file at `path` as one should: written elsewhere, renamed in."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.parent / ".coming"
        aside.write_bytes(self.data)
        os.replace(aside, path)

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """What PyTorch gives for one sequence, float32[steps, outputs]."""
        with torch.no_grad():
            result = self.module(torch.from_numpy(x)[None])
        return (result[0] if isinstance(result, tuple) else result)[0].numpy()

    def gave(self, y: np.ndarray, x: np.ndarray = X) -> bool:
        """Whether `y` are this model's outputs."""
        return bool(np.allclose(y, self.outputs(x)[: len(y)], atol=1e-5))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("made")
    return {
        "one": Model("lstm", 1, folder),
        "two": Model("lstm", 2, folder),
        "mlp": Model("mlp", 1, folder),
        "mlp2": Model("mlp", 2, folder),
    }


class Served:
    """A server over a folder of its own, and both clients."""

    def __init__(self, server: Any, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.client: Client = connect(server.target)
        self.triton = tritonclient.grpc.InferenceServerClient(server.target)

    def index(self) -> dict[tuple[str, str], str]:
        """State by name and version."""
        return {(m.name, m.version): m.state for m in self.triton.get_model_repository_index().models}

    def ready(self, name: str = "lstm") -> bool:
        """Whether the health service says so; it does not know a model that never was served."""
        try:
            return self.client.ready(name)
        except NotFound:
            return False

    def released(self, version: str = "1", name: str = "lstm") -> Callable[[], bool]:
        return lambda: any(
            entry["event"] == "model released" and (entry["model"], entry["version"]) == (name, version)
            for entry in self.server.log
        )

    def close(self) -> None:
        self.client.close()
        self.triton.close()
        assert self.server.stop() == 0


Start = Callable[..., Served]


@pytest.fixture
def start(start_server: Any, tmp_path: Path) -> Iterator[Start]:
    """Starts a server under explicit control over `tmp_path / "models"`."""
    folder = tmp_path / "models"
    folder.mkdir()
    started = []

    def go(*flags: str, control: str = "explicit") -> Served:
        started.append(Served(start_server(folder, "--model-control", control, *flags), folder))
        return started[-1]

    yield go
    for served in started:
        served.close()


def reason(call: Callable[[], Any]) -> str:
    """The reason of the typed error that `call` ends with."""
    with pytest.raises(StreamCellError) as caught:
        call()
    return caught.value.reason


def refused(call: Callable[[], Any]) -> tuple[str, str]:
    """Status and text of the error that Triton's client gets."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value.status()), str(caught.value.message())


# Loading


def test_nothing_is_loaded_but_what_is_named(start: Start, made: dict[str, Model], tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        made["one"].put(tmp_path / "models" / f"{name}.onnx")
    served = start("--load-model", "a", "--load-model", "c")
    assert served.index() == {("a", "1"): "READY", ("b", "1"): "", ("c", "1"): "READY"}
    assert {model.name for model in served.client.models()} == {"a", "c"}
    assert {model.name for model in start("--load-model", "*").client.models()} == {"a", "b", "c"}
    assert start().client.models() == []


def test_a_model_that_is_loaded_serves_at_once(start: Start, made: dict[str, Model]) -> None:
    served = start()
    assert reason(lambda: served.client.session("lstm")) == "MODEL_NOT_FOUND"
    assert not served.ready()
    made["one"].put(served.folder / "lstm.onnx")
    made["mlp"].put(served.folder / "mlp.onnx")
    served.triton.load_model("lstm")
    served.triton.load_model("mlp")
    with served.client.session("lstm") as session:
        assert made["one"].gave(session.run(X))
    assert made["mlp"].gave(served.client.predict("mlp", X[None])[0])
    assert served.ready()
    assert served.triton.is_model_ready("lstm")
    assert served.index() == {("lstm", "1"): "READY", ("mlp", "1"): "READY"}
    assert served.server.metric("streamcell_slots", model="lstm", version="1") == 10_000


@pytest.mark.conformance
def test_live_sessions_stay_on_their_version_and_new_ones_get_the_newest(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    made["one"].put(tmp_path / "models" / "lstm" / "1" / "model.onnx")
    served = start("--load-model", "lstm")
    before = psutil.Process(served.server.pid).num_threads()
    old, pool = served.client.session("lstm"), served.client.pool("lstm", 2)
    first, pooled = old.run(X[:7]), [pool.step(np.stack([X[0], X[0]]))]
    made["two"].put(served.folder / "lstm" / "2" / "model.onnx")
    served.triton.load_model("lstm")
    assert served.index() == {("lstm", "1"): "UNLOADING", ("lstm", "2"): "READY"}
    assert reason(lambda: served.client.session("lstm", "1")) == "VERSION_NOT_FOUND"
    with served.client.session("lstm") as new:
        newer = []
        for step in range(7, 20):  # side by side
            first = np.concatenate([first, old.run(X[step : step + 1])])
            pooled.append(pool.step(np.stack([X[step - 6], X[step - 6]])))
            newer.append(new.step(X[step - 7]))
        assert new.version == "2"
        assert made["two"].gave(np.stack(newer))
    assert made["one"].gave(first)
    assert made["one"].gave(np.stack(pooled)[:, 1])
    assert (old.version, pool.version) == ("1", "1")
    # A stream of frames on the old version may go on opening members there.
    assert len(pool.open_members(1)) == 1
    assert served.server.metric("streamcell_sessions", model="lstm", version="1") == 4
    assert not served.released()()
    old.close()
    pool.close()
    assert eventually(served.released())
    assert served.index() == {("lstm", "1"): "", ("lstm", "2"): "READY"}
    assert 'version="1"' not in served.server.metrics()
    assert served.server.metric("streamcell_sessions_opened_total", version="2") == 1
    assert psutil.Process(served.server.pid).num_threads() <= before + 2


def test_a_file_replaced_under_its_version_is_a_new_generation_of_it(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    made["one"].put(tmp_path / "models" / "lstm.onnx")
    served = start("--load-model", "lstm")
    with served.client.session("lstm") as old:
        half = old.run(X[:10])
        made["two"].put(served.folder / "lstm.onnx")
        served.triton.load_model("lstm")
        with served.client.session("lstm") as new:
            assert made["two"].gave(new.run(X))
            # One series counts both generations, and never falls.
            assert served.server.metric("streamcell_slots", model="lstm", version="1") == 20_000
            assert served.server.metric("streamcell_sessions", model="lstm") == 2
            assert served.server.metric("streamcell_slots_used", model="lstm") == 2
        assert made["one"].gave(np.concatenate([half, old.run(X[10:])]))
    assert eventually(served.released())
    assert served.server.metric("streamcell_slots", model="lstm", version="1") == 10_000
    assert served.server.metric("streamcell_steps_total", model="lstm", version="1") == 40
    loaded = [entry for entry in served.server.log if entry["event"] == "model loaded"]
    served.triton.load_model("lstm")  # as it was
    assert [entry for entry in served.server.log if entry["event"] == "model loaded"] == loaded


def test_all_versions_are_served_where_that_is_asked_for(
    start: Start, made: dict[str, Model], tmp_path: Path
) -> None:
    made["one"].put(tmp_path / "models" / "lstm" / "1" / "model.onnx")
    served = start("--load-model", "lstm", "--versions", "all")
    made["two"].put(served.folder / "lstm" / "2" / "model.onnx")
    served.triton.load_model("lstm")
    assert served.index() == {("lstm", "1"): "READY", ("lstm", "2"): "READY"}
    for version, name in (("1", "one"), ("2", "two"), ("", "two")):
        with served.client.session("lstm", version) as session:
            assert made[name].gave(session.run(X))


# What cannot be loaded


def test_a_load_that_fails_says_why_and_leaves_what_is_served(
    start: Start, made: dict[str, Model], tmp_path: Path
) -> None:
    made["one"].put(tmp_path / "models" / "lstm" / "1" / "model.onnx")
    served = start("--load-model", "lstm")
    with served.client.session("lstm") as session:
        first = session.run(X[:10])
        bad = served.folder / "lstm" / "2" / "model.onnx"
        bad.parent.mkdir()
        bad.write_bytes(b"no model")
        status, text = refused(lambda: served.triton.load_model("lstm"))
        assert status == "StatusCode.FAILED_PRECONDITION"
        assert "not an ONNX file" in text
        assert str(bad) in text
        assert served.server.metric("streamcell_model_load_failures_total", model="lstm") == 1
        entries = {(m.version, m.state): m.reason for m in served.triton.get_model_repository_index().models}
        assert "not an ONNX file" in entries["2", "UNAVAILABLE"]
        assert "not an ONNX file" in entries["1", "READY"]
        assert made["one"].gave(np.concatenate([first, session.run(X[10:])]))
    with served.client.session("lstm") as session:
        assert made["one"].gave(session.run(X))
    made["two"].put(bad)
    served.triton.load_model("lstm")
    with served.client.session("lstm") as session:
        assert made["two"].gave(session.run(X))
    assert served.index()["lstm", "2"] == "READY"


def test_what_is_not_there_or_not_allowed_is_refused_and_told_apart(
    start: Start, made: dict[str, Model], tmp_path: Path
) -> None:
    served = start()
    status, text = refused(lambda: served.triton.load_model("none"))
    assert status == "StatusCode.NOT_FOUND"
    assert "no model named 'none'" in text
    assert refused(lambda: served.triton.unload_model("none"))[0] == "StatusCode.NOT_FOUND"
    misplaced = served.folder / "lstm" / "model.onnx"
    made["one"].put(misplaced)
    assert "put it into lstm/1/model.onnx" in refused(lambda: served.triton.load_model("lstm"))[1]
    made["one"].put(served.folder / "lstm" / "1" / "model.onnx")  # which is no reason to overlook the other
    assert "put it into lstm/1/model.onnx" in refused(lambda: served.triton.load_model("lstm"))[1]
    made["one"].put(served.folder / "ok.onnx")
    for overrides in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"x"}}):
        status, text = refused(lambda overrides=overrides: served.triton.load_model("ok", **overrides))
        assert status == "StatusCode.INVALID_ARGUMENT"
        assert "load it without parameters" in text
    assert served.server.metric("streamcell_errors_total", reason="LOAD_PARAMETER") == 2
    assert served.client.models() == []


@pytest.mark.parametrize(
    ("control", "said"), [("none", "model control is off"), ("poll", "polling the folder")]
)
def test_loads_by_request_need_explicit_control(
    start: Start, made: dict[str, Model], tmp_path: Path, control: str, said: str
) -> None:
    made["one"].put(tmp_path / "models" / "lstm.onnx")
    served = start(control=control)
    for call in (served.triton.load_model, served.triton.unload_model):
        status, text = refused(lambda call=call: call("lstm"))
        assert status == "StatusCode.UNAVAILABLE"
        assert said in text
    assert served.server.metric("streamcell_errors_total", reason="MODEL_CONTROL_OFF") == 2
    assert served.index() == {("lstm", "1"): "READY"}


# Unloading


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
    served = start("--load-model", "lstm", "--unload-grace", "1")
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
    assert served.server.metric("streamcell_errors_total", reason="MODEL_IN_USE") == 1

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


def test_a_client_that_knows_the_old_shape_learns_the_new_one(
    start: Start, made: dict[str, Model], tmp_path: Path
) -> None:
    made["mlp"].put(tmp_path / "models" / "mlp.onnx")
    served = start("--load-model", "mlp")
    assert made["mlp"].gave(served.client.predict("mlp", X[None])[0])
    wider = Model("wider", 3, tmp_path)
    wider.put(served.folder / "mlp.onnx")
    served.triton.load_model("mlp")
    x = np.ones((1, 4, 5), np.float32)
    assert wider.gave(served.client.predict("mlp", x)[0], x[0])
    assert reason(lambda: served.client.predict("mlp", X[None])) == "WRONG_SHAPE"

    async def predict() -> tuple[np.ndarray, np.ndarray]:
        async with connect_async(served.server.target) as client:
            first = await client.predict("mlp", x)
            made["mlp"].put(served.folder / "mlp.onnx")
            served.triton.load_model("mlp")
            return first, await client.predict("mlp", X[None])

    first, second = asyncio.run(predict())
    assert wider.gave(first[0], x[0])
    assert made["mlp"].gave(second[0])


def test_a_shutdown_does_not_wait_for_an_unload(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    made["one"].put(tmp_path / "models" / "lstm.onnx")
    served = start("--load-model", "lstm", "--unload-grace", "600", "--grace-s", "0.2")
    session = served.client.session("lstm")
    session.run(X[:1])
    call = served.triton._client_stub.RepositoryModelUnload.future(unload_of("lstm"))
    assert eventually(lambda: served.index() == {("lstm", "1"): "UNLOADING"})
    assert served.server.stop(20) == 0
    assert reason(lambda: session.run(X[1:])) == "SERVER_DRAINING"
    assert call.exception(PATIENCE_S).code().name == "UNAVAILABLE"


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


def test_fifty_loads_and_unloads_give_memory_and_threads_back(
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
    for _ in range(50):
        cycle()
    assert process.num_threads() <= threads + 1
    # The states of 10,000 sessions alone are 2.4 MiB: kept, fifty times that would be 122 MiB.
    assert process.memory_info().rss - memory < 16 * 1024 * 1024
    assert eventually(lambda: sum(entry["event"] == "model released" for entry in served.server.log) == 60)


# Polling


def test_polling_follows_the_folder(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    served = start("--model-poll-s", "0.1", "--unload-grace", "0.2", control="poll")
    assert served.client.models() == []
    made["one"].put(served.folder / "lstm.onnx")
    assert eventually(served.ready)
    session = served.client.session("lstm")
    first = session.run(X[:10])
    # Changed: the live session stays on the old one.
    made["two"].put(served.folder / "lstm.onnx")
    assert eventually(lambda: served.index() == {("lstm", "1"): "READY"} and loads(served) == 2)
    with served.client.session("lstm") as new:
        assert made["two"].gave(new.run(X))
    assert made["one"].gave(np.concatenate([first, session.run(X[10:])]))
    # Broken: what is served still is, and the fault is logged once, until the file changes.
    broken = served.folder / ".broken"
    broken.write_bytes(b"no model")
    os.replace(broken, served.folder / "lstm.onnx")
    assert eventually(lambda: failures(served) == 1)
    made["mlp"].put(served.folder / "mlp" / "3" / "model.onnx")
    assert eventually(lambda: served.ready("mlp"))
    with served.client.session("lstm") as new:
        assert made["two"].gave(new.run(X))
    # Removed: unloaded, with the grace.
    (served.folder / "lstm.onnx").unlink()
    assert eventually(lambda: not served.ready())
    assert eventually(lambda: list(served.client.sessions("mlp")) == list(served.client.sessions()))
    assert reason(lambda: session.run(X)) == "MODEL_UNLOADED"
    assert [model.name for model in served.client.models()] == ["mlp"]
    assert made["mlp"].gave(served.client.predict("mlp", X[None])[0])


def loads(served: Served) -> int:
    return sum(entry["event"] == "model loaded" for entry in served.server.log)


def failures(served: Served) -> int:
    return sum(entry["event"] == "model not loaded" for entry in served.server.log)


def test_a_folder_that_vanishes_unloads_nothing(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    made["one"].put(tmp_path / "models" / "lstm.onnx")
    served = start("--model-poll-s", "0.1", control="poll")
    away = tmp_path / "away"
    served.folder.rename(away)
    assert eventually(lambda: any(entry["event"] == "folder of models" for entry in served.server.log))
    with served.client.session("lstm") as session:
        assert made["one"].gave(session.run(X))
    away.rename(served.folder)


def test_a_file_that_is_gone_stays_served_where_unloading_is_refused(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    made["one"].put(tmp_path / "models" / "lstm.onnx")
    served = start("--model-poll-s", "0.05", "--unload", "refuse", control="poll")
    with served.client.session("lstm") as session:
        first = session.run(X[:10])
        (served.folder / "lstm.onnx").unlink()
        assert eventually(
            lambda: any("its file is gone" in entry.get("reason", "") for entry in served.server.log)
        )
        with served.client.session("lstm") as other:
            assert made["one"].gave(other.run(X))
        assert made["one"].gave(np.concatenate([first, session.run(X[10:])]))
    assert eventually(lambda: not served.ready())
    assert eventually(served.released())
