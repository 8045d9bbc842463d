"""Whatever goes wrong at load or warm-up is one report: each file, why, what to write. Good models do not suffer."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from streamcell.card import ModelCard, Signature, Tensor, write_card
from streamcell.client import connect
from streamcell.service.load_errors import DeviceError, RepositoryError, load_failure
from streamcell.service.repository.selection import at_start
from streamcell.service.settings import Settings
from tests.support.forked import ForkedServer
from tests.support.onnx_files import parsed, save
from tests.support.waiting import waited

TYPES = "(float[n, 3] x, int64[n, 3] h) => (float[n, 3] y, int64[n, 3] k) { y = Add(x, h) k = Identity(h) }"
GROWS = (
    "(float[n, 3] x, float[n, m] h) => (float[n, 3] y, float[n, o] k)"
    " { y = Identity(x) k = Concat <axis = 1> (h, x) }"
)
RESERVED = '"streamcell.read_slots"'
SIDECAR = 'layout = "batch"\ninputs = ["x"]\noutputs = ["y"]\n'
STATE = '[[states]]\ninput = "h"\noutput = "k"\n'
ADD = "(float[n, 3] x, float[n, 3] h) => (float[n, 3] y, float[n, 3] k) { y = Add(x, h) k = Identity(y) }"
Make = Callable[[], tuple[onnx.ModelProto, str | None]]


def opset_of_the_future() -> tuple[onnx.ModelProto, str | None]:
    model = parsed(ADD)
    model.opset_import[0].version = 99
    return model, SIDECAR + STATE


def weights_that_are_missing() -> tuple[onnx.ModelProto, str | None]:
    model = parsed("(float[n, 3] x) => (float[n, 3] y) { y = Add(x, w) }", w=np.ones(3, np.float32))
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nothing")
    return model, SIDECAR


def card_that_lies() -> tuple[onnx.ModelProto, str | None]:
    """Its sizes are open in the graph, so that only a run shows it."""
    model = parsed("(float[n, m] x) => (float[n, o] y) { y = MatMul(x, w) }", w=np.ones((3, 3), np.float32))
    signature = Signature(
        inputs=(Tensor(name="x", dtype="float32", step_shape=(4,)),),
        outputs=(Tensor(name="y", dtype="float32", step_shape=(3,)),),
        layout="batch",
    )
    write_card(model, ModelCard(name="m", kind="M", signature=signature))
    return model, None


def lstm_without_cell() -> tuple[onnx.ModelProto, str | None]:
    model = parsed(
        "(float[t, n, 3] x, float[1, n, 4] h) => (float[t, n, 4] y, float[1, n, 4] k)"
        " { a, k = LSTM <hidden_size = 4> (x, W, R, , , h) y = Squeeze(a, one) }",
        W=np.random.default_rng(1).standard_normal((1, 16, 3)).astype(np.float32),
        R=np.random.default_rng(2).standard_normal((1, 16, 4)).astype(np.float32),
        one=np.array([1]),
    )
    return model, SIDECAR.replace('"batch"', '"time_batch"') + STATE + "batch_axis = 1\n"


# By file name: how it is made, why it cannot be served, and what the user is told to do.
BAD: dict[str, tuple[Make, str, str]] = {
    "unclear": (lambda: (parsed(ADD.replace("h", "a")), None), r"may be a state", r"unclear\.toml beside it"),
    "sidecar": (
        lambda: (parsed(ADD), SIDECAR + STATE + "batchaxis = 0\n"),
        r"states\.0\.batchaxis: unknown key",
        r"did you mean 'batch_axis'\?",
    ),
    "names": (
        lambda: (parsed(ADD), SIDECAR.replace('"y"', '"yy"') + STATE),
        r"outputs: 'yy': the graph has no such name",
        r"did you mean 'y'\?",
    ),
    "operator": (
        lambda: (parsed(ADD.replace("Identity", "Divine")), SIDECAR + STATE),
        r"ONNX Runtime does not take the graph: .*Divine",
        r"export it again with standard operators",
    ),
    "types": (
        lambda: (parsed(TYPES), SIDECAR + STATE),
        r"ONNX Runtime does not take the graph: .*Add",
        r"export it again",
    ),
    "future": (opset_of_the_future, r"opset 99", r"opset of \d+ or lower"),
    "weights": (
        weights_that_are_missing,
        r"external data",
        r"put the files of its weights at the paths that it names",
    ),
    "step": (
        lambda: (
            parsed("(float[n, m] x) => (float[n, o] y) { y = MatMul(x, w) }", w=np.ones((3, 3), np.float32)),
            SIDECAR.replace('["x"]', '[{ name = "x", step_shape = [4] }]').replace(
                '["y"]', '[{ name = "y", step_shape = [3] }]'
            ),
        ),
        r"ONNX Runtime does not take the graph: .*MatMul",
        r"step_shape.* in .*step\.toml",
    ),
    "output": (
        lambda: (
            parsed("(float[n, 3] x) => (float[n, m] y) { y = Concat <axis = 1> (x, x) }"),
            SIDECAR.replace('["y"]', '[{ name = "y", step_shape = [3] }]'),
        ),
        r"one timestep it fails: ",
        r"step_shape.* in .*output\.toml",
    ),
    "grows": (
        lambda: (parsed(GROWS), SIDECAR + STATE + "batch_axis = 0\nshape = [3]\n"),
        r"state 'h' grows with every step",
        r"Export the model with a rolling cache",
    ),
    "card": (
        card_that_lies,
        r"ONNX Runtime does not take the graph: .*MatMul",
        r"its card does not describe its graph: export it again",
    ),
    "forgets": (lstm_without_cell, r"no initial_c", r"export it with initial_c as an input"),
    "bomb": (
        lambda: (
            parsed(ADD.replace("3] h", f"{1 << 40}] h").replace("3] k", f"{1 << 40}] k")),
            SIDECAR + STATE,
        ),
        r"too little memory",
        r"give the server more memory",
    ),
    "reserved": (
        lambda: (parsed(ADD.replace("h", RESERVED)), SIDECAR + STATE.replace('"h"', RESERVED)),
        r"reserved name",
        r"is it pooled already\?",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good models among bad ones; beside them a TOML that belongs to none."""
    folder = tmp_path / "models"
    for name, (make, _, _) in BAD.items():
        model, sidecar = make()
        save(model, folder / f"{name}.onnx", sidecar)
    (folder / "noise.onnx").write_bytes(b"this is not a model")
    (folder / "loose").mkdir()
    save(parsed(ADD), folder / "loose" / "model.onnx")
    for name in ("a-good", "z-good"):
        save(parsed(ADD), folder / f"{name}.onnx", SIDECAR + STATE)
    (folder / "zgood.toml").write_text(SIDECAR)
    return folder


def assert_reported(lines: list[str], folder: Path) -> None:
    """Each bad file has one entry, with the cause and what to write."""
    report = "".join(f"\n- {line.removeprefix('- ')}" for line in lines)
    entries = re.split(r"\n- (?=.*?/models/)", report)
    for name, (_, cause, remedy) in BAD.items():
        mine = [each for each in entries if re.search(rf"{folder}/{name}\.(onnx|toml): ", each)]
        assert len(mine) == 1, (name, mine, report)
        assert re.search(cause, mine[0], re.DOTALL), mine[0]
        assert re.search(remedy, mine[0], re.DOTALL), mine[0]
        assert "ONNXRuntimeError" not in mine[0]
    assert "noise.onnx: not an ONNX file" in report
    assert "put it into loose/1/model.onnx" in report
    stray = (
        "there is no model beside it: expected zgood.onnx, or [[stages]] in it; did you mean 'z-good.toml'?"
    )
    assert f"{folder}/zgood.toml: {stray}" in report
    assert "noise.onnx: not an ONNX file" in report
    assert "a-good" not in report


@pytest.mark.conformance
@pytest.mark.parametrize(
    "flags", [[], ["--model-control", "explicit", "--load-model", "*"]], ids=["none", "explicit"]
)
def test_a_server_does_not_start_and_reports_every_model_that_fails(
    flags: list[str], frontends: int, folder: Path
) -> None:
    server = ForkedServer(folder, "--frontends", str(min(frontends, 1)), *flags)
    assert server.process.wait(120) == 1
    server.stop()
    said = "".join(server.said)
    assert f"{folder}: {len(BAD) + 2} models cannot be served" in said
    assert_reported(said.splitlines(keepends=True), folder)
    assert "Traceback" not in said


@pytest.mark.conformance
def test_a_server_that_polls_serves_the_good_models_and_reports_the_others(
    start_server: Any, folder: Path
) -> None:
    server = start_server(folder, "--model-control", "poll", "--model-poll-s", "3600")
    with connect(server.target) as client:
        assert [model.name for model in client.models()] == ["a-good", "z-good"]
        for name in ("a-good", "z-good"):
            assert client.ready(name)
            with client.session(name) as session:
                assert (session.step(np.ones(3, np.float32)) == 1).all()
    errors = [entry["reason"] for entry in server.log if entry["event"] == "model not loaded"]
    assert len(errors) == len(BAD) + 1
    assert_reported(errors + [e["reason"] for e in server.log if e["event"] == "folder of models"], folder)
    assert waited(lambda: server.metric("streamcell_model_load_failures_total") == len(BAD) + 1)
    assert server.stop() == 0
    assert "Traceback" not in "".join(server.said)


def test_named_models_are_reported_together_and_no_others(tmp_path: Path) -> None:
    save(parsed(ADD), tmp_path / "good.onnx", SIDECAR + STATE)
    save(parsed(ADD), tmp_path / "names.onnx", SIDECAR.replace('"y"', '"yy"') + STATE)
    save(parsed(ADD), tmp_path / "other.onnx", "layout = 1")
    save(parsed(ADD), tmp_path / "loose" / "model.onnx")
    names = ("good", "names", "loose", "goood")
    found = at_start(Settings.load(models=tmp_path, model_control="explicit", load_model=names))
    assert [file.name for file in found.files] == ["good"]
    said = str(RepositoryError(tmp_path, found.errors))
    assert "3 models cannot be served" in said
    assert "outputs: 'yy': the graph has no such name" in said
    assert "put it into loose/1/model.onnx" in said
    assert f"load_model: no such model in {tmp_path}: 'goood'; did you mean 'good'?" in said
    assert "other" not in said


def test_under_poll_a_good_version_is_served_beside_a_bad_one(
    start_server: Any, eventually: Any, tmp_path: Path
) -> None:
    """At the start as later, and a name that a sidecar takes from another file is not that file's fault."""
    save(parsed(ADD), tmp_path / "m" / "1" / "model.onnx", SIDECAR + STATE)
    save(parsed(ADD), tmp_path / "m" / "2" / "model.onnx", "layout = 1")
    save(parsed(ADD), tmp_path / "impostor.onnx", f'name = "own"\n{SIDECAR}{STATE}')
    save(parsed(ADD), tmp_path / "own.onnx", SIDECAR + STATE)
    server = start_server(tmp_path, "--model-control", "poll", "--model-poll-s", "0.1", "--versions", "all")
    said = {entry["model"]: entry["reason"] for entry in server.log if entry["event"] == "model not loaded"}
    assert said.keys() == {"m", "own"}
    assert "2/model.toml: " in said["m"]
    assert "impostor.onnx: model 'own' version 1 exists twice" in said["own"]
    with connect(server.target) as client:
        assert [(model.name, model.version) for model in client.models()] == [("m", "1"), ("own", "1")]
        # A served version whose file breaks stays, and so does one whose file goes, while another is broken.
        # All at once, while the server is stopped: a look in between would count another failure. So does one that
        # is stopped half-way.
        (tmp_path / ".broken").write_text("layout = 2")
        save(parsed(ADD), tmp_path / ".made" / "model.onnx", SIDECAR + STATE)
        server.process.send_signal(signal.SIGSTOP)
        (tmp_path / ".broken").rename(tmp_path / "m" / "1" / "model.toml")
        (tmp_path / ".made").rename(tmp_path / "m" / "3")
        server.process.send_signal(signal.SIGCONT)
        assert eventually(lambda: client.model("m").version == "3")
        assert [(model.name, model.version) for model in client.models()] == [
            ("m", "1"),
            ("m", "3"),
            ("own", "1"),
        ]
        failures = "streamcell_model_load_failures_total"
        assert eventually(
            lambda: server.metric(failures, model="m") in (2, 3)
        )  # counted after what loads is served
        # Mended, all are served.
        for version in ("1", "2"):
            (tmp_path / "m" / version / "model.toml").write_text(SIDECAR + STATE)
        assert eventually(lambda: len(list(client.models())) == 4)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError("no"), "m.onnx: too little memory to load it: no; give the server more memory"),
        (DeviceError("device cuda:9: there is none"), "m.onnx: device cuda:9: there is none"),
        (KeyError("weights"), "m.onnx: KeyError: 'weights'; run with --log-level debug to see where"),
    ],
)
def test_errors_that_nobody_has_thought_of_are_reported_too(error: Exception, text: str) -> None:
    assert str(load_failure(error, Path("m.onnx"))) == text
