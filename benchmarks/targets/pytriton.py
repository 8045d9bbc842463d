"""A peer: the Triton server that the PyPI wheel `nvidia-pytriton` carries, running the same ONNX file.

Triton's Python back end with a sequence batcher keeps the states by correlation id, in numpy, and runs the file in the
same version of ONNX Runtime. The wheel needs NumPy 1, so it gets a virtual environment of its own, made on first use in
the user's cache folder (about 200 MB, from PyPI). The wheel is for x86-64 Linux with glibc 2.35 or newer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from streamcell.benchmarks.cases import Target
from streamcell.card import Signature
from streamcell.service.repository.model_file import ModelFile, open_model

from .triton_process import MAX_SEQUENCES, MODEL, PeerError, config, running

NAME, VERSION = "pytriton", "0.7.0"
_SHARED_BYTES = 256 * 1024 * 1024


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
    value = f'{{ key: "signature", value: {{ string_value: {_about(file, signature)} }} }}'
    text = config(file.name, signature, "python", parameters=f"parameters {value}")
    into = folder / file.name / "1"
    into.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("pytriton_model.py"), into / "model.py")
    (into.parent / "config.pbtxt").write_text(text)


def _about(file: ModelFile, signature: Signature) -> str:
    """What the model file needs to know of the graph, as a text of the configuration."""
    about = {
        "path": str(file.path.resolve()),
        "input": signature.inputs[0].name,
        "output": signature.outputs[0].name,
        "lengths": signature.lengths or "",
        "has_time": signature.has_time,
        "max_sequences": MAX_SEQUENCES,
        "states": [state.model_dump() for state in signature.states],
    }
    return json.dumps(json.dumps(about))


def _backends(server: Path, folder: Path) -> Path:
    """The folder of back ends: Python's, with the stub for this Python."""
    backend = folder / "backends/python"
    shutil.copytree(server / "backends/python", backend)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = backend / "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / python / stub.name, stub)
    stub.chmod(0o755)
    return backend.parent


@contextmanager
def pytriton(models: Path) -> Iterator[Target]:
    """Serve `models`/lstm.onnx.

    Raises:
        PeerError: it cannot be installed, or does not start.
    """
    venv = environment()
    (package,) = venv.glob("lib/python3.*/site-packages")
    server = package / "pytriton/tritonserver"
    flags = {
        # With the default of 8, 64 sequences at once end it within seconds: SIGSEGV in memcpy under
        # TRITONBACKEND_ModelInstanceExecute. Kept for reuse, requests are not freed under the back end's hands.
        "grpc-infer-allocation-pool-size": "4096",
        # Growing it costs a batch some milliseconds: set aside what the largest needs.
        "backend-config": f"python,shm-default-byte-size={_SHARED_BYTES}",
    }
    variables = {
        **os.environ,
        "LD_LIBRARY_PATH": str(package / "nvidia_pytriton.libs"),
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",  # the stub takes the first python3 there
    }
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        write_repository(repository, open_model(models / f"{MODEL}.onnx", MODEL))
        with running(
            NAME,
            server / "bin/tritonserver",
            repository,
            _backends(server, Path(folder)),
            flags=flags,
            environment=variables,
        ) as target:
            yield target
