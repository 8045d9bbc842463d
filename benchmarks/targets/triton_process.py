"""Starts a Triton server that serves one model over gRPC on free ports of this machine."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from streamcell.benchmarks.cases import Target
from streamcell.benchmarks.load.oip import border
from streamcell.benchmarks.load.usage import family
from streamcell.card import Signature

MODEL = "lstm"
MAX_BATCH, MAX_SEQUENCES = 256, 2000
_STARTS_S, _STOPS_S = 60.0, 10.0


class PeerError(RuntimeError):
    """The peer cannot be installed, cannot serve the model or does not start; the text says why."""


def tensor(name: str, shape: Sequence[int]) -> str:
    """A float32 input or output in a model's configuration."""
    return f'{{ name: "{name}", data_type: TYPE_FP32, dims: {list(shape)} }}'


def config(model: str, signature: Signature, backend: str, state: str = "", parameters: str = "") -> str:
    """A model's configuration: batches of single steps, formed of the oldest sequences.

    Args:
        model: its name.
        signature: with one input and one output.
        backend: the back end's name.
        state: the `state` of `sequence_batching`, if Triton keeps it.
        parameters: further lines.

    Raises:
        PeerError: the model has several inputs or outputs.
    """
    if len(signature.inputs) != 1 or len(signature.outputs) != 1:
        raise PeerError(f"{model}: the peer runs models with one input and one output")
    x, y = signature.inputs[0], signature.outputs[0]
    return f"""name: "{model}"
backend: "{backend}"
max_batch_size: {MAX_BATCH}
input [{tensor(x.name, x.step_shape)}]
output [{tensor(y.name, y.step_shape)}]
sequence_batching {{
  max_sequence_idle_microseconds: 60000000
  {state}
  oldest {{ max_candidate_sequences: {MAX_SEQUENCES} }}
}}
instance_group [{{ count: 1, kind: KIND_CPU }}]
{parameters}
"""


@contextmanager
def running(
    name: str,
    server: Path,
    repository: Path,
    backends: Path,
    *,
    environment: Mapping[str, str],
    flags: Mapping[str, str] | None = None,
) -> Iterator[Target]:
    """Serve the models of `repository` and yield the target, called `name`, that takes loads on `MODEL`.

    Args:
        name: what results call it.
        server: the program, or a script that ends in `exec` of it.
        repository: Triton's folder of models.
        backends: the folder that has a folder for each back end.
        environment: its whole environment.
        flags: flags besides those that every run has.

    Raises:
        PeerError: it does not start; the end of its output.
    """
    port = _free_port()
    every = {
        "model-repository": str(repository),
        "backend-directory": str(backends),
        "grpc-address": "127.0.0.1",
        "grpc-port": str(port),
        "allow-http": "false",
        "metrics-address": "127.0.0.1",
        "metrics-port": str(_free_port()),
        "allow-gpu-metrics": "false",
        "exit-timeout-secs": "1",
        "log-info": "false",
    }
    command = [str(server), *(f"--{flag}={value}" for flag, value in (every | dict(flags or {})).items())]
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            address = f"127.0.0.1:{port}"
            load = {"dialect": "oip", **_wait(name, address, process, Path(log.name))}
            yield Target(name, address, tuple(family(process.pid)), load=load)
        finally:
            process.terminate()
            try:
                process.wait(_STOPS_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(name: str, address: str, process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    """The model's border, once it is served."""
    until_s = time.monotonic() + _STARTS_S
    while process.poll() is None and time.monotonic() < until_s:
        try:
            return border(address, MODEL)
        except grpc.RpcError:
            time.sleep(0.2)
    said = log.read_text()[-2000:].strip()
    raise PeerError(f"{name} does not serve the model: {said or 'it said nothing'}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
