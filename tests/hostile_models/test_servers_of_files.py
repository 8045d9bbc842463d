"""Servers on folders with files that cannot be served: one report at the start; later the others go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc

from streamcell.client import connect
from tests.support.forked import ForkedServer
from tests.support.hostile_files import (
    ADD,
    LOADED,
    OPENED,
    SIDECAR,
    STATE,
    bytes_in_its_name,
    deep_toml,
    fifo_version,
    state_bomb,
    unknown_operator,
)
from tests.support.onnx_files import parsed, save


def test_a_server_with_all_of_them_ends_with_one_report(frontends: int, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    save(parsed(ADD), folder / "good.onnx", SIDECAR + STATE)
    for make in (fifo_version, deep_toml, bytes_in_its_name):
        make(folder)
    server = ForkedServer(folder, "--frontends", str(frontends))
    assert server.process.wait(60) == 1
    server.stop()
    said = "".join(server.said)
    assert "3 models cannot be served" in said
    assert "Traceback" not in said
    for make in (unknown_operator, state_bomb):
        folder = tmp_path / make.__name__
        folder.mkdir()
        make(folder)
        server = ForkedServer(folder, "--frontends", str(frontends))
        assert server.process.wait(60) == 1
        server.stop()
        said = "".join(server.said)
        assert f"{folder / 'bad.onnx'}: " in said
        assert "Traceback" not in said


@pytest.mark.parametrize("kind", ["poll", "explicit"])
def test_model_control_goes_on_whatever_is_put_into_the_folder(
    kind: str, start_server: Any, eventually: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    good = ADD
    save(parsed(good), folder / "good.onnx", SIDECAR + STATE)
    flags = ["--model-poll-s", "0.1"] if kind == "poll" else ["--load-model", "good"]
    server = start_server(folder, "--model-control", kind, *flags)
    makes = [make for make, *_ in OPENED.values()] + [make for make, _ in LOADED.values()]
    for number, make in enumerate(makes):
        own = tmp_path / str(number)
        (own / "models").mkdir(parents=True)
        make(own / "models")
        for entry in sorted((own / "models").iterdir()):
            to = f"bad{number}{entry.suffix}" if entry.stem == "bad" else entry.name
            if not os.path.lexists(folder / to):
                os.rename(entry, folder / to)
    with connect(server.target) as client, client.session("good") as session:
        assert (session.step(np.ones(3, np.float32)) == 1).all()
        if kind == "poll":
            # What a look at the folder refuses is counted after what it loads is served: by the next look it is.
            for name in ("zulu", "zulu1"):
                save(parsed(good), folder / f"{name}.onnx", SIDECAR + STATE)
                assert eventually(lambda name=name: name in {model.name for model in client.models()})
            count = server.metric("streamcell_model_load_failures_total")
            save(parsed(good), folder / "zulu2.onnx", SIDECAR + STATE)
            assert eventually(lambda: "zulu2" in {model.name for model in client.models()})
            # What has not changed is not tried again.
            assert server.metric("streamcell_model_load_failures_total") == count
        else:
            with tritonclient.grpc.InferenceServerClient(server.target) as triton:
                assert len(triton.get_model_repository_index().models) > 10
                for number in range(len(makes)):
                    with pytest.raises(tritonclient.grpc.InferenceServerException, match=f"bad{number}"):
                        triton.load_model(f"bad{number}")
        assert (session.step(np.ones(3, np.float32)) == 2).all()
    lines = [line for line in server.log if "Traceback" in str(line) or "exception" in line]
    assert not lines
    assert not [line for line in server.said if "Traceback" in line]


def test_a_file_that_is_still_being_written_is_tried_again_when_it_has_changed(
    start_server: Any, eventually: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    save(parsed(ADD), folder / "good.onnx", SIDECAR + STATE)
    server = start_server(folder, "--model-control", "poll", "--model-poll-s", "0.05")
    table = np.zeros((1000, 1000), np.float32)
    model = parsed(
        "(float[n, 3] x) => (float[n, 3] y) { t = ReduceMax <keepdims = 0> (w) y = Add(x, t) }", w=table
    )
    data = model.SerializeToString()
    failures = "streamcell_model_load_failures_total"
    with connect(server.target) as client, (tmp_path / "slow.onnx").open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        server.process.send_signal(
            signal.SIGSTOP
        )  # it must see the half file with its sidecar, and nothing less
        (folder / "slow.toml").write_text(SIDECAR)
        (tmp_path / "slow.onnx").rename(folder / "slow.onnx")
        server.process.send_signal(signal.SIGCONT)
        assert eventually(lambda: server.metric(failures, model="slow") >= 1)
        tried = server.metric(failures, model="slow")
        save(parsed(ADD), folder / "after.onnx", SIDECAR + STATE)
        assert eventually(lambda: "after" in {model.name for model in client.models()})
        assert server.metric(failures, model="slow") == tried
        file.write(data[len(data) // 2 :])
        file.flush()
        assert eventually(lambda: "slow" in {model.name for model in client.models()})
        np.testing.assert_array_equal(
            client.predict("slow", np.ones((1, 1, 3), np.float32)), np.ones((1, 1, 3))
        )
