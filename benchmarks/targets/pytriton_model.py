"""The model file that Triton's Python back end runs for the peer: states by correlation id, a batch a run.

It is copied into a model repository and runs in an environment of its own, with numpy and onnxruntime and nothing of
this project.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

START, END = 1, 2  # TRITONSERVER_REQUEST_FLAG_SEQUENCE_START, _END


class TritonPythonModel:
    """One ONNX model with states."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session; what the graph takes is in the configuration's parameters."""
        config = json.loads(args["model_config"])
        about = json.loads(config["parameters"]["signature"]["string_value"])
        self._x, self._y, self._lengths = about["input"], about["output"], about["lengths"]
        self._has_time = about["has_time"]
        self._states = about["states"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(about["path"], options, providers=["CPUExecutionProvider"])
        self._names = [self._y, *(state["output"] for state in self._states)]
        # One row a live sequence in each state, row 0 the initial one.
        rows = 1 + about["max_sequences"]
        self._pools = [np.zeros((rows, *state["shape"]), state["dtype"]) for state in self._states]
        for pool, state in zip(self._pools, self._states):  # noqa: B905 (runs on any Python that Triton has a stub for)
            pool[0] = np.reshape(state["initial"], state["shape"]) if state["initial"] else 0
        self._row_of: dict[int, int] = {}
        self._free = list(range(rows - 1, 0, -1))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One step of each request's sequence, as one run."""
        read, write, ended = [], [], []
        for request in requests:
            sequence, flags = request.correlation_id(), request.flags()
            row = self._row_of.get(sequence)
            if row is None:
                row = self._row_of[sequence] = self._free.pop()
            read.append(0 if flags & START else row)
            write.append(row)
            if flags & END:
                ended.append(sequence)
        tensors = [pb_utils.get_input_tensor_by_name(request, self._x).as_numpy() for request in requests]
        x = np.concatenate(tensors)
        feed = {self._x: x[:, None] if self._has_time else x}
        if self._lengths:
            feed[self._lengths] = np.ones(len(x), np.int32)
        for pool, state in zip(self._pools, self._states):  # noqa: B905
            feed[state["input"]] = np.moveaxis(pool[read], 0, state["batch_axis"])
        y, *after = self._session.run(self._names, feed)
        for pool, state, new in zip(self._pools, self._states, after):  # noqa: B905
            pool[write] = np.moveaxis(new, state["batch_axis"], 0)
        for sequence in ended:
            self._free.append(self._row_of.pop(sequence))
        y = y.reshape(len(x), -1)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(self._y, y[at : at + 1])])
            for at in range(len(requests))
        ]
