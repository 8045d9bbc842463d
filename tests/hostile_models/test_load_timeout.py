"""A load that does not end is given up, with the file's name, and holds up nobody."""

from __future__ import annotations

import gc
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from streamcell.client import connect
from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Engine
from streamcell.service.engine.time_limit import TimeLimit
from streamcell.service.lifecycle.load_thread import abandoned, within
from streamcell.service.lifecycle.loaded_model import load
from streamcell.service.load_errors import ModelLoadError
from streamcell.service.repository.model_file import open_model
from streamcell.service.settings import Settings
from tests.support.forked import ForkedServer
from tests.support.onnx_files import parsed, save

SIDECAR = 'layout = "batch"\ninputs = ["x"]\noutputs = ["y"]\n[[states]]\ninput = "h"\noutput = "h_next"\n'


def test_a_warm_up_that_does_not_end_is_ended(endless: Any, tmp_path: Path) -> None:
    path = save(endless(above=-1), tmp_path / "endless.onnx", SIDECAR)
    settings = Settings.load(models=tmp_path, load_timeout_s=2)  # all but the warm-up takes less
    with pytest.raises(
        ModelLoadError, match=r"endless\.onnx: loading it took longer than 2 s.*--load-timeout-s"
    ):
        load(open_model(path, "endless"), settings, Device())
    assert not abandoned()


def test_a_load_that_cannot_be_ended_is_left_behind_and_dropped_when_it_ends() -> None:
    going, dropped = threading.Event(), threading.Event()

    def make() -> str:
        going.wait(60)
        return "late"

    with pytest.raises(ModelLoadError, match=r"took longer than 0\.05 s"):
        within(0.05, TimeLimit(), make, lambda made: dropped.set(), "stuck")
    assert abandoned()
    going.set()
    assert dropped.wait(60)


def test_an_error_of_the_load_is_its_own() -> None:
    def make() -> str:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        within(60, TimeLimit(), make, lambda made: None, "broken")


def test_a_load_that_failed_leaves_no_engine_behind(endless: Any, tmp_path: Path) -> None:
    """Not even until the garbage collector comes by: a folder that is polled may bring one after another."""
    path = save(endless(above=-1), tmp_path / "endless.onnx", SIDECAR)
    settings = Settings.load(models=tmp_path, load_timeout_s=0.3)

    def engines() -> int:
        return sum(type(each) is Engine for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = engines()
        for _ in range(2):
            with suppress(ModelLoadError):
                load(open_model(path, "endless"), settings, Device())
        assert engines() == before
    finally:
        gc.enable()


def folding(nodes: int, size: int) -> onnx.ModelProto:
    """A file of a few kilobytes whose constants take minutes and gigabytes to compute: products of huge matrices."""
    text = " ".join(f"m{i + 1} = MatMul(m{i}, m0)" for i in range(nodes))
    return parsed(
        "(float[n, 3] x, float[n, 3] h) => (float[n, 3] y, float[n, 3] h_next) { m0 = ConstantOfShape(size) "
        f"{text} r = ReduceMax <keepdims = 0> (m{nodes}) z = Mul(r, zero) y = Add(x, z) h_next = Add(h, x) }}",
        size=np.array([size, size]),
        zero=np.zeros((), np.float32),
    )


def test_constants_that_take_for_ever_to_compute_are_not_computed_unseen(tmp_path: Path) -> None:
    """As the session is made nobody could end it; as nodes of a run they are ended."""
    path = save(folding(400, 3000), tmp_path / "folding.onnx", SIDECAR)
    settings = Settings.load(models=tmp_path, load_timeout_s=1)
    with pytest.raises(ModelLoadError, match=r"folding\.onnx: loading it took longer than 1 s"):
        load(open_model(path, "folding"), settings, Device())


def test_a_server_that_starts_with_one_ends_with_the_report(
    frontends: int, endless: Any, tmp_path: Path
) -> None:
    save(endless(above=-1), tmp_path / "endless.onnx", SIDECAR)
    server = ForkedServer(tmp_path, "--load-timeout-s", "1", "--frontends", str(frontends))
    assert server.process.wait(60) == 1
    server.stop()
    said = "".join(server.said)
    assert "endless.onnx: loading it took longer than 1 s" in said
    assert "Traceback" not in said


def test_while_serving_it_holds_up_neither_sessions_nor_other_models(
    start_server: Any, eventually: Any, endless: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    save(endless(), folder / "good.onnx", SIDECAR)
    server = start_server(folder, "--model-control", "poll", "--model-poll-s", "0.1", "--load-timeout-s", "5")
    with connect(server.target) as client, client.session("good") as session:
        save(endless(above=-1), folder / "a-bad.onnx", SIDECAR)
        save(endless(), folder / "later.onnx", SIDECAR)
        steps = 0

        def failed() -> bool:
            nonlocal steps
            steps += 1
            assert session.step(np.ones(1, np.float32)) == steps
            return float(server.metric("streamcell_model_load_failures_total", model="a-bad")) == 1

        assert eventually(failed)
        assert eventually(lambda: "later" in {model.name for model in client.models()})
        # It is not tried again until it changes.
        assert server.metric("streamcell_model_load_failures_total", model="a-bad") == 1
