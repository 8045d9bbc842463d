"""Runs an exported graph in plain ONNX Runtime on the CPU, as any user of the file would."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from streamcell.card import Signature

from .errors import ExportError
from .tensors import Array

PROVIDER = "CPUExecutionProvider"


class Runner:
    """One session on a serialised model.

    Args:
        model: the .onnx file's bytes.
        signature: names of what to feed and what to fetch.

    Raises:
        ExportError: ONNX Runtime does not load the model.
    """

    def __init__(self, model: bytes, signature: Signature) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what fails is raised as well
        try:
            self._session = ort.InferenceSession(model, options, providers=[PROVIDER])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise ExportError(f"ONNX Runtime {ort.__version__} does not load the graph: {error}") from error
        self.signature = signature
        self._outputs = [
            *(tensor.name for tensor in signature.outputs),
            *(state.output for state in signature.states),
        ]

    def __call__(
        self, inputs: Sequence[Array], states: Sequence[Array], lengths: Array | None = None
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """One run.

        Args:
            inputs: in the signature's order and layout.
            states: in the signature's order, each with its batch axis.
            lengths: int[batch]; None for all timesteps in every row; ignored by a graph that does not take them.

        Returns:
            The outputs and the states after them.

        Raises:
            ExportError: ONNX Runtime refuses the run.
        """
        signature = self.signature
        feed = dict(zip((tensor.name for tensor in signature.inputs), inputs, strict=True))
        feed.update(zip((state.input for state in signature.states), states, strict=True))
        if signature.lengths is not None:
            if lengths is None:
                lengths = np.full(*inputs[0].shape[:2])
            feed[signature.lengths] = lengths.astype(np.int32)
        try:
            results = self._session.run(self._outputs, feed)
        except Exception as error:  # as above
            raise ExportError(f"ONNX Runtime {ort.__version__} does not run the graph: {error}") from error
        count = len(signature.outputs)
        return tuple(results[:count]), tuple(results[count:])
