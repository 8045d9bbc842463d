"""`streamcell serve` at its edges: what it says when it cannot start, TLS, and no silent fallback from a device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import onnxruntime as ort
import pytest

from streamcell.proto import pb, rpc
from tests.support.certificates import self_signed

STREAMCELL = Path(sys.executable).with_name("streamcell")


def test_the_flags_are_made_from_the_settings() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, root / "cli" / "generate.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def serve(*flags: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([STREAMCELL, "serve", *flags], capture_output=True, text=True, timeout=120)


def test_cuda_that_cannot_be_had_is_refused_and_says_why(models_dir: Path) -> None:
    # No machine has so many; a build for CUDA names its provider with or without a card.
    done = serve("--models", models_dir, "--device", "cuda:99", "--port", "0", "--metrics-port", "0")
    assert done.returncode == 1
    assert "device cuda:99: " in done.stderr
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        assert "has no CUDAExecutionProvider" in done.stderr
        assert "streamcell[gpu]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["--cuda-graphs"], 1, "device cpu: CUDA graphs need a CUDA device and fixed shapes"),
        (["--cuda-graphs", "--model-control", "poll"], 1, "device cpu: CUDA graphs need a CUDA device and"),
        (["--cell", "fused"], 2, "cell: Input should be 'auto', 'operator' or 'decomposed'"),
        (["--device", "tpu"], 1, "device 'tpu': expected 'cpu', 'cuda' or 'cuda:N'"),
        (["--port", "99999"], 2, "port: Input should be less than or equal to 65535"),
        (["--config", "none.toml"], 2, "no configuration file at none.toml"),
        (["--host", "256.1.1.1"], 1, "cannot listen on 256.1.1.1:0"),
        (["--model-control", "explicit", "--load-model", "none"], 1, "no such model in"),
        (["--load-model", "lstm"], 2, "load_model needs model_control = explicit"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(
    models_dir: Path, flags: list[str], code: int, text: str
) -> None:
    done = serve("--models", models_dir, "--port", "0", "--metrics-port", "0", "--log-level", "error", *flags)
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    done = serve("--models", tmp_path)
    assert done.returncode == 1
    assert f"no model in {tmp_path}" in done.stderr


def test_a_broken_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"this is not a model")
    done = serve("--models", tmp_path)
    assert done.returncode == 1
    assert "broken.onnx" in done.stderr
    assert "Traceback" not in done.stderr


def test_tls(start_server: Any, models_dir: Path, tmp_path: Path, program: Callable[[str], str]) -> None:
    program("openssl")
    cert, key = self_signed(tmp_path)
    server = start_server(models_dir, "--tls-cert", str(cert), "--tls-key", str(key))
    target = server.target.replace("127.0.0.1", "localhost")
    credentials = grpc.ssl_channel_credentials(cert.read_bytes())
    with grpc.secure_channel(target, credentials) as channel:
        requests = [
            pb.StreamRequest(open=pb.OpenSession(model="lstm")),
            pb.StreamRequest(inputs=[bytes(12)]),
        ]
        _, reply = rpc.StreamCellStub(channel).Stream(iter(requests))
        assert reply.step_index == 1
    assert server.stop() == 0


def test_the_newest_version_is_the_default_and_older_ones_stay_reachable(
    start_server: Any, models_dir: Path, tmp_path: Path
) -> None:
    for version in ("2", "10"):
        (tmp_path / "lstm" / version).mkdir(parents=True)
        (tmp_path / "lstm" / version / "model.onnx").write_bytes((models_dir / "lstm.onnx").read_bytes())
    server = start_server(tmp_path, "--lane", "threaded")
    assert 'streamcell_lane_info{lane="threaded"} 1.0' in server.metrics()
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.StreamCellStub(channel)
        for asked, got in (("", "10"), ("2", "2")):
            request = pb.StreamRequest(open=pb.OpenSession(model="lstm", version=asked))
            (reply,) = stub.Stream(iter([request]))
            assert reply.opened.version == got
    assert server.stop() == 0
