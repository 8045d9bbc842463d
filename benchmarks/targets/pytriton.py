"""A peer: the Triton server that the PyPI wheel `nvidia-pytriton` carries, running the same ONNX file.

Triton's Python back end with a sequence batcher keeps the states by correlation id, in numpy, and runs the file in the
same version of ONNX Runtime. The wheel needs NumPy 1, so it gets a virtual environment of its own, made on first use in
the user's cache folder (about 200 MB, from PyPI). The wheel is for x86-64 Linux with glibc 2.35 or newer.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc

from streamcell.benchmarks.cases import Target
from streamcell.benchmarks.load.oip import border
from streamcell.benchmarks.load.usage import family
from streamcell.card import Signature
from streamcell.service.repository.model_file import ModelFile, open_model

NAME, VERSION = "pytriton", "0.7.0"
_MODEL = "lstm"
_MAX_BATCH, _MAX_SEQUENCES = 256, 2000
_SHARED_BYTES = 256 * 1024 * 1024
_STARTS_S, _STOPS_S = 60.0, 10.0


class PeerError(RuntimeError):
    """The peer cannot be installed or does not start; the text is its output."""


def environment(cache: Path | None = None) -> Path:
    """The peer's virtual environment, made if it is not there yet.

    Args:
        cache: the folder to make it in; None: the user's cache folder.

    Raises:
        PeerError: it cannot be made; what pip said.
    """
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamcell"
    runtime = version("onnxruntime")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache / f"{NAME}-{VERSION}-py{python}-ort{runtime}"
    if (folder / "ready").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "numpy<2", f"onnxruntime=={runtime}"],
        # Its own requirements are those of its Python front, which is not used.
        [*pip, "--no-deps", f"nvidia-pytriton=={VERSION}"],
    ):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise PeerError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    (folder / "ready").touch()
    return folder


def write_repository(folder: Path, file: ModelFile) -> None:
    """A Triton model repository with `file` as its one model."""
    signature = file.signature
    if len(signature.inputs) != 1 or len(signature.outputs) != 1:
        raise PeerError(f"{file.path.name}: the peer runs models with one input and one output")
    into = folder / file.name / "1"
    into.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("pytriton_model.py"), into / "model.py")
    about = json.dumps(json.dumps(_about(file, signature)))
    (into.parent / "config.pbtxt").write_text(
        f"""name: "{file.name}"
backend: "python"
max_batch_size: {_MAX_BATCH}
input [{_tensor(signature.inputs[0].name, signature.inputs[0].step_shape)}]
output [{_tensor(signature.outputs[0].name, signature.outputs[0].step_shape)}]
sequence_batching {{
  max_sequence_idle_microseconds: 60000000
  oldest {{ max_candidate_sequences: {_MAX_SEQUENCES} }}
}}
instance_group [{{ count: 1, kind: KIND_CPU }}]
parameters {{ key: "signature", value: {{ string_value: {about} }} }}
"""
    )


def _tensor(name: str, shape: tuple[int, ...]) -> str:
    return f'{{ name: "{name}", data_type: TYPE_FP32, dims: {list(shape)} }}'


def _about(file: ModelFile, signature: Signature) -> dict[str, Any]:
    return {
        "path": str(file.path.resolve()),
        "input": signature.inputs[0].name,
        "output": signature.outputs[0].name,
        "lengths": signature.lengths or "",
        "has_time": signature.has_time,
        "max_sequences": _MAX_SEQUENCES,
        "states": [state.model_dump() for state in signature.states],
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _command(venv: Path, home: Path, repository: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """How to start the server, and its environment. `home` is where its back ends are put together."""
    (package,) = venv.glob("lib/python3.*/site-packages")
    server = package / "pytriton/tritonserver"
    backend = home / "backends/python"
    shutil.copytree(server / "backends/python", backend)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = backend / "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / python / stub.name, stub)
    stub.chmod(0o755)
    flags = {
        "model-repository": str(repository),
        "backend-directory": str(home / "backends"),
        "grpc-address": "127.0.0.1",
        "grpc-port": str(port),
        "allow-http": "false",
        "metrics-address": "127.0.0.1",
        "metrics-port": str(_free_port()),
        "allow-gpu-metrics": "false",
        "exit-timeout-secs": "1",
        "log-info": "false",
        # With the default of 8, 64 sequences at once end it within seconds: SIGSEGV in memcpy under
        # TRITONBACKEND_ModelInstanceExecute. Kept for reuse, requests are not freed under the back end's hands.
        "grpc-infer-allocation-pool-size": "4096",
        # Growing it costs a batch some milliseconds: set aside what the largest needs.
        "backend-config": f"python,shm-default-byte-size={_SHARED_BYTES}",
    }
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(package / "nvidia_pytriton.libs"),
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",  # the stub takes the first python3 there
    }
    return [str(server / "bin/tritonserver"), *(f"--{k}={v}" for k, v in flags.items())], environment


@contextmanager
def pytriton(models: Path) -> Iterator[Target]:
    """Serve `models`/lstm.onnx.

    Raises:
        PeerError: it cannot be installed, or does not start.
    """
    venv = environment()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        write_repository(repository, open_model(models / f"{_MODEL}.onnx", _MODEL))
        port = _free_port()
        command, variables = _command(venv, Path(folder), repository, port)
        log = Path(folder) / "log"
        with log.open("w") as out:
            process = subprocess.Popen(command, env=variables, stdout=out, stderr=subprocess.STDOUT)
        try:
            address = f"127.0.0.1:{port}"
            load = {"dialect": "oip", **_wait(address, process, log)}
            yield Target(NAME, address, tuple(family(process.pid)), load=load)
        finally:
            process.terminate()
            try:
                process.wait(_STOPS_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    """The model's border, once it is served."""
    until_s = time.monotonic() + _STARTS_S
    while process.poll() is None and time.monotonic() < until_s:
        try:
            return border(address, _MODEL)
        except grpc.RpcError:
            time.sleep(0.2)
    raise PeerError(
        f"{NAME} does not serve the model: {log.read_text()[-2000:].strip() or 'it said nothing'}"
    )
