"""The worked example of docs/triton.md: its four files, as they stand on the page, run against a real server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from streamcell.client import connect

PAGE = Path(__file__).parents[2] / "docs" / "triton.md"


def block(name: str) -> str:
    """The page's block of that file name."""
    (found,) = re.findall(
        rf"^```\w+ {re.escape(name)}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return str(found)


def run(script: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def moved(start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server on the example's folder."""
    folder = tmp_path_factory.mktemp("moved")
    version = folder / "moving_average" / "1"
    version.mkdir(parents=True)
    run(block("make_model.py"), folder)
    (version / "model.toml").write_text(block("model.toml"))
    (version.parent / "config.pbtxt").write_text(block("config.pbtxt"))  # it may stay where it was
    return start_server(folder, "--triton-metrics", "--triton-names")


def test_the_client_of_the_page_gets_what_the_page_says(moved: Any, tmp_path: Path) -> None:
    printed = run(block("client.py").replace("localhost:8500", moved.target), tmp_path)
    (said,) = re.findall(r"# (.*, then .*)$", block("client.py"), re.MULTILINE)
    assert printed.splitlines() == said.split(", then ")


def test_the_client_that_sends_numbers_gets_what_the_page_says(moved: Any, tmp_path: Path) -> None:
    printed = run(block("exactly_once.py").replace("localhost:8500", moved.target), tmp_path)
    (said,) = re.findall(r"# (.*, then .*)$", block("exactly_once.py"), re.MULTILINE)
    assert printed.splitlines() == said.split(", then ")


def test_a_client_that_checks_for_triton_s_name_and_texts_is_content(moved: Any) -> None:
    """What Triton's own example of health and metadata checks, on this page's model."""
    with tritonclient.grpc.InferenceServerClient(moved.target) as client:
        assert client.is_server_live()
        assert client.is_model_ready("moving_average")
        assert client.get_server_metadata().name == "triton"
        assert client.get_model_metadata("moving_average").name == "moving_average"
        x = tritonclient.grpc.InferInput("INPUT", [1, 2], "FP32")
        x.set_data_from_numpy(np.ones((1, 2), np.float32))
        for ask in (lambda: client.get_model_metadata("wrong"), lambda: client.infer("wrong", [x])):
            with pytest.raises(InferenceServerException) as caught:
                ask()
            assert caught.value.message().startswith("Request for unknown model")


def test_the_states_are_those_of_the_graph_under_triton_s_rules(moved: Any) -> None:
    """Against the recurrence itself, batched across sequences that start at different times."""
    x = np.random.default_rng(2).standard_normal((9, 12, 2)).astype(np.float32)
    state = np.tile(np.array([1.0, -1.0], np.float32), (9, 1))
    with connect(moved.target) as client:
        sessions = [client.session("moving_average") for _ in range(9)]
        for step in range(12):
            for session, value in zip(sessions, x[:, step], strict=True):
                session.send(value)
            state = (state + x[:, step]) / 2
            for session, expected in zip(sessions, state, strict=True):
                np.testing.assert_allclose(session.receive(), expected, atol=1e-6)
        for session in sessions:
            session.close()


def test_the_config_of_the_page_is_one_that_triton_reads_and_describes_the_same_model(moved: Any) -> None:
    theirs = text_format.Parse(block("config.pbtxt"), model_config_pb2.ModelConfig())
    with tritonclient.grpc.InferenceServerClient(moved.target) as client:
        ours = client.get_model_config("moving_average").config
        metadata = client.get_model_metadata("moving_average")
    assert (ours.name, ours.backend) == (theirs.name, theirs.backend)
    for mine, other in ((ours.input, theirs.input), (ours.output, theirs.output)):
        assert [(t.name, t.data_type, [*t.dims]) for t in mine] == [
            (t.name, t.data_type, [*t.dims]) for t in other
        ]
    assert ours.WhichOneof("scheduling_choice") == theirs.WhichOneof("scheduling_choice")
    idle = "max_sequence_idle_microseconds"
    assert getattr(ours.sequence_batching, idle) == getattr(theirs.sequence_batching, idle)
    assert [(t.name, t.datatype, [*t.shape]) for t in metadata.inputs] == [("INPUT", "FP32", [-1, 2])]
