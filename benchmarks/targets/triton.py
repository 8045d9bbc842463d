"""A peer: a Triton server with its ONNX Runtime back end, in C++, that the caller names.

`--triton-server` is the program, or a script that sets what it needs (LD_LIBRARY_PATH, an allocator in LD_PRELOAD) and
ends in `exec tritonserver "$@"`; `--triton-backends` is the folder that has `onnxruntime/libtriton_onnxruntime.so`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx

from streamcell.benchmarks.cases import Target
from streamcell.service.repository.model_file import ModelFile, open_model

from .one_state import NEXT_STATE, STATE, floats, one_state
from .triton_process import MODEL, PeerError, config, running

NAME, BACKEND = "triton", "onnxruntime"
# One thread, as the server has it.
_PARAMETERS = """parameters [
  { key: "intra_op_thread_count", value: { string_value: "1" } },
  { key: "inter_op_thread_count", value: { string_value: "1" } }
]"""


@dataclass(frozen=True)
class Triton:
    """The parts of a Triton on this machine.

    Attributes:
        server: the program or a script that starts it.
        backends: the folder of its back ends.
    """

    server: Path
    backends: Path

    @contextmanager
    def __call__(self, models: Path) -> Iterator[Target]:
        """Serve `models`/lstm.onnx.

        Raises:
            PeerError: a part is missing, or it does not start.
        """
        library = self.backends.resolve() / BACKEND / f"libtriton_{BACKEND}.so"
        for part in (self.server, library):
            if not part.is_file():
                raise PeerError(f"there is no {part}")
        with tempfile.TemporaryDirectory() as folder:
            repository = Path(folder)
            write_repository(repository, open_model(models / f"{MODEL}.onnx", MODEL))
            environment = {"ORT_DISABLE_TELEMETRY": "1", **os.environ}
            server, backends = self.server.resolve(), self.backends.resolve()
            with running(NAME, server, repository, backends, environment=environment) as target:
                yield target


def write_repository(folder: Path, file: ModelFile) -> None:
    """A Triton model repository with `file` as its one model, with the same weights and one implicit state."""
    signature = file.signature
    of_state = f"data_type: TYPE_FP32, dims: [{floats(signature)}]"
    state = f"""state [{{
    input_name: "{STATE}", output_name: "{NEXT_STATE}", {of_state}
    initial_state: [{{ name: "zeros", {of_state}, zero_data: true }}]
  }}]"""
    text = config(file.name, signature, BACKEND, state, _PARAMETERS)
    into = folder / file.name / "1"
    into.mkdir(parents=True)
    onnx.save(one_state(file.load(), signature), into / "model.onnx")
    (into.parent / "config.pbtxt").write_text(text)
