"""Loading and swapping by request: live sessions stay where they are, new ones get the newest."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from streamcell.client import connect_async
from tests.support.model_control import Model, Start, X, reason, refused
from tests.support.waiting import waited


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
    assert waited(lambda: served.server.metric("streamcell_sessions_opened_total", version="2") == 1)
    assert waited(lambda: psutil.Process(served.server.pid).num_threads() <= before + 2)


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
            assert waited(lambda: served.server.metric("streamcell_sessions", model="lstm") == 2)
            assert waited(lambda: served.server.metric("streamcell_slots_used", model="lstm") == 2)
        assert made["one"].gave(np.concatenate([half, old.run(X[10:])]))
    assert eventually(served.released())
    assert served.server.metric("streamcell_slots", model="lstm", version="1") == 10_000
    assert waited(lambda: served.server.metric("streamcell_steps_total", model="lstm", version="1") == 40)
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
        assert waited(lambda: served.server.metric("streamcell_model_load_failures_total", model="lstm") == 1)
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
    assert waited(lambda: served.server.metric("streamcell_errors_total", reason="LOAD_PARAMETER") == 2)
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
    assert waited(lambda: served.server.metric("streamcell_errors_total", reason="MODEL_CONTROL_OFF") == 2)
    assert served.index() == {("lstm", "1"): "READY"}


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


def test_a_shared_stream_opens_new_sessions_on_the_newest_version(
    start: Start, made: dict[str, Model], tmp_path: Path, eventually: Any
) -> None:
    made["one"].put(tmp_path / "models" / "lstm" / "1" / "model.onnx")
    served = start("--load-model", "lstm", "--unload-grace-s", "0.1")
    old, spare = (served.client.session("lstm", multiplex=True) for _ in range(2))
    first = old.run(X[:7])
    made["two"].put(served.folder / "lstm" / "2" / "model.onnx")
    served.triton.load_model("lstm")
    new = [served.client.session("lstm", multiplex=True, lazy=True) for _ in range(3)]
    assert all(made["two"].gave(session.run(X)) for session in new)
    assert ({old.id, spare.id}, {session.id for session in new}) == ({old.id}, {new[0].id})
    assert made["one"].gave(np.concatenate([first, old.run(X[7:])]))
    for session in (old, spare):
        session.close()
    assert eventually(served.released("1"))
    served.triton.unload_model("lstm")
    assert reason(lambda: new[0].run(X)) == "MODEL_UNLOADED"
    assert reason(lambda: served.client.session("lstm", multiplex=True)) in {
        "MODEL_UNLOADING", "MODEL_NOT_FOUND",
    }  # fmt: skip
