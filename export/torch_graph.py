"""A user's module through PyTorch's own exporter, made as clean as the project's own graphs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import onnx
import torch
from torch import nn

from streamcell.card import Signature

from .calling import Calling
from .errors import ExportError
from .graph import IR_VERSION, OPSET, check
from .names import BATCH, TIME
from .purity import unchanged
from .user_errors import told


class Flat(nn.Module):
    """A module as a function of tensors: inputs and states → outputs and states, one timestep or many.

    Args:
        has_time: whether inputs and outputs are [batch, time, ...]; False: [batch, ...].
    """

    def __init__(self, calling: Calling, *, has_time: bool) -> None:
        super().__init__()
        self.module = calling.module
        self._calling = calling
        self._has_time = has_time
        self._inputs = sum(len(slot.nest) for slot in calling.inputs)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs, states = tensors[: self._inputs], tensors[self._inputs :]
        run = self._calling if self._has_time else self._calling.step
        outputs, after = run(inputs, states)
        return (*outputs, *after)


def torch_graph(
    calling: Calling,
    inputs: Sequence[torch.Tensor],
    states: Sequence[torch.Tensor],
    signature: Signature,
    *,
    name: str,
    version: str,
) -> onnx.ModelProto:
    """Export with a dynamic batch axis (and time axis, if the layout has one).

    Args:
        inputs: an example in the signature's layout, of a batch that `states` share.

    Raises:
        ExportError: PyTorch cannot export the module, or not with a dynamic batch.
    """
    dynamic = torch.export.Dim.DYNAMIC
    axes = {0: dynamic, 1: dynamic} if signature.has_time else {0: dynamic}
    shapes = (*(axes for _ in inputs), *({state.batch_axis: dynamic} for state in signature.states))
    wrapped = Flat(calling, has_time=signature.has_time)
    with _quiet(), unchanged(calling.module):
        try:
            program = torch.onnx.export(
                wrapped,
                (*inputs, *states),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=[*(t.name for t in signature.inputs), *(s.input for s in signature.states)],
                output_names=[*(t.name for t in signature.outputs), *(s.output for s in signature.states)],
                dynamic_shapes=(shapes,),
            )
        except torch.onnx.errors.OnnxExporterError as error:
            what = "with a dynamic time axis" if signature.has_time else "as a step function"
            reason = told(error.__cause__ or error).partition("\n\n")[0]
            if "data-dependent" in reason:
                reason += "\nWhat a step computes may not depend on values: write torch.where for `if`, and no .item()"
            raise ExportError(f"PyTorch cannot export {name} {what}: {reason}") from error
    if program is None:
        raise ExportError(f"PyTorch's exporter returned no graph for {name}")
    model = program.model_proto
    _clean(model, signature, name)
    model.producer_name, model.producer_version = "streamcell", version
    return check(model)


def _clean(model: onnx.ModelProto, signature: Signature, name: str) -> None:
    """Pin the versions, name the dynamic axes, drop traces of the machine, check inputs and outputs."""
    opset = next((entry.version for entry in model.opset_import if entry.domain == ""), 0)
    if opset != OPSET:
        raise ExportError(f"PyTorch gave opset {opset}; {OPSET} is needed")
    model.ir_version = IR_VERSION
    graph = model.graph
    graph.name = name
    # Stack traces and file names of where the module was defined.
    named: list[Any] = [graph, *graph.node, *graph.input, *graph.output, *graph.initializer]
    named += [node for function in model.functions for node in function.node]
    for item in named:
        item.doc_string = ""
        del item.metadata_props[:]
    # `check` infers them again, with the axes' proper names.
    del graph.value_info[:]
    axes: dict[str, dict[int, str]] = {
        tensor.name: {0: BATCH, 1: TIME} if signature.has_time else {0: BATCH}
        for tensor in (*signature.inputs, *signature.outputs)
    }
    for state in signature.states:
        axes[state.input] = axes[state.output] = {state.batch_axis: BATCH}
    ends: list[tuple[str, Any, set[str]]] = [
        ("input", graph.input, {*(t.name for t in signature.inputs), *(s.input for s in signature.states)}),
        (
            "output",
            graph.output,
            {*(t.name for t in signature.outputs), *(s.output for s in signature.states)},
        ),
    ]
    for what, values, wanted in ends:
        names = [value.name for value in values]
        if sorted(names) != sorted(wanted):
            raise ExportError(f"PyTorch's graph has {what}s {names}; expected {sorted(wanted)}")
        for value in values:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if axis in axes[value.name]:
                    _make_dynamic(value.name, dim, axes[value.name][axis])
                elif not dim.HasField("dim_value"):
                    raise ExportError(
                        f"axis {axis} of {value.name} is not fixed ({dim.dim_param or 'unknown'})"
                    )


def _make_dynamic(name: str, dim: Any, axis: str) -> None:
    if dim.HasField("dim_value"):
        remedy = "; export it one timestep a run, with layout batch" if axis == TIME else ""
        raise ExportError(f"PyTorch fixed the {axis} of {name} to {dim.dim_value}{remedy}")
    dim.dim_param = axis


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports missing torchvision operators, its own deprecations, and whole graphs when it fails; the
    error says what of it is the user's."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx._internal.exporter._registration", "torch.fx.experimental.symbolic_shapes")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
