"""A user's own module to an .onnx file that carries its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from pydantic import ValidationError
from torch import nn

from streamcell.card import Generation, ModelCard, Signature, Tensor

from .causes import float64_cast
from .errors import ExportError, ProofError
from .finding import Found
from .proof import TOLERANCES, Prover
from .publish import ExportOptions, Settings, publish
from .purity import copy_of
from .runner import Runner
from .states import InitialState, dtype_name
from .study import study
from .tensors import as_tensor, one_thread
from .torch_graph import torch_graph
from .user_errors import user_code

# Batch and time of the example that PyTorch traces; axes of length 0 and 1 would be taken for fixed.
TRACED_BATCH, TRACED_TIME = 3, 4


@one_thread()
def export_module(
    module: nn.Module,
    path: str | Path,
    *,
    example_x: torch.Tensor | Mapping[str, Any],
    initial_state: InitialState | None = None,
    state_names: Sequence[str] | None = None,
    time_axis: bool | None = None,
    layout: Literal["batch", "batch_time"] = "batch",
    distribution: Literal["bernoulli_logits", "categorical_logits", "real"] | None = None,
    generation: Generation | None = None,
    training: Mapping[str, Any] | None = None,
    **options: Unpack[ExportOptions],
) -> ModelCard:
    """Write a module that takes inputs and states and returns outputs and states, proved against PyTorch.

    How it is called is found by calling it (`finding`): inputs [batch, time, ...], [time, batch, ...] or one
    timestep; states as one parameter each or nested in tuples, lists, dicts and dataclasses; outputs for every
    timestep or for the last one.

    PyTorch's exporter sees one timestep (layout "batch": x [batch, *step], y [batch, *out]), because it fixes
    what a recurrent module does to the number of timesteps of the example. A module that is truly generic in
    time can be exported with layout "batch_time"; the proof then runs it on sequences of many lengths.

    Args:
        example_x: [batch, time, *step] (or [batch, *step] for a module of one timestep), any supported dtype, for
            the first parameter, the input "x"; for several inputs a dict, parameter → tensor, or tuple, dict or
            dataclass of tensors. The proof draws its timesteps, so give a fair sample: 16 or more of them,
            indices in range.
        initial_state: batch → the states before the first step, the same for every row; if not given, the
            module's own `initial_state(batch)`, `init_hidden` or `init_state`. Without that the parameters that are
            no inputs and default to None (or have no default) may be states: if the module without them returns
            something that they take, they are, with zeros before the first step. The batch axis of each state is
            found by comparing two batch sizes.
        state_names: the states' names; if not given, the module's `state_names`, else their parameters'.
        time_axis: whether the module takes a time axis; None: found by trying. False: examples are [batch, *step].
        distribution: what y parametrises, for the card of a module with one output.
        generation: how y becomes the next x, for the card, if the server is to generate. A single input is called
            "x", a single output "y".
        path: as for `export_model`.
        training: provenance for the card, JSON values.
        options: name, description, precision and tolerance; see `ExportOptions`.

    Returns:
        The card that was embedded; its `kind` is the module's class name.

    Raises:
        UserCodeError: the module's own code raised an exception.
        ProofError: ONNX Runtime's results are over the tolerance, or the module's own steps do not add up to
            its whole sequence; nothing is saved.
        ExportError: the module cannot be called, or PyTorch cannot export it.
    """
    settings = Settings.of(path, training=training, **options)
    if layout not in ("batch", "batch_time"):
        raise ExportError(f"layout must be batch or batch_time; got {layout!r}")
    if layout == "batch_time" and time_axis is False:
        raise ExportError("layout batch_time needs a module that takes a time axis")
    module = _unwrapped(module)
    with user_code(f"{type(module).__name__} cannot be copied"):
        twin = copy_of(module).cpu().eval()
    # The copy's own method, so that states are made on the copy's device.
    own = initial_state is None or getattr(initial_state, "__self__", None) is module
    user, step = study(
        twin,
        example_x,
        None if own else initial_state,
        getattr(twin, "state_names", None) if state_names is None else state_names,
        time_axis=True if layout == "batch_time" and time_axis is None else time_axis,
        tolerance=settings.tolerance if settings.precision == "fp32" else TOLERANCES["fp32"],
    )
    found = user.found
    if layout == "batch_time" and any(found.calling.last):
        raise ExportError("layout batch_time needs outputs for every timestep; leave it out")
    signature = _signature(found, step, layout, distribution)
    drawn = user.draw(TRACED_BATCH, TRACED_TIME)
    graph = torch_graph(
        found.calling,
        [as_tensor(x if layout == "batch_time" else x[:, 0]) for x in drawn],
        [as_tensor(state) for state in user.initial(TRACED_BATCH)],
        signature,
        name=settings.name,
        version=settings.versions["streamcell"],
    )

    def prover(runner: Runner) -> Prover:
        return Prover(runner, user, user.draw, user.initial)

    try:
        return publish(
            graph,
            signature,
            settings,
            kind=type(module).__name__,
            config={},
            prover=prover,
            generation=generation,
        )
    except ProofError:
        raise
    except ExportError as error:  # ONNX Runtime has no recurrent operators for float64
        if "double" in str(error) and (cast := float64_cast(twin, {})):
            raise ExportError(f"{error}\n{cast}") from error
        raise


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module that torch.compile or DataParallel was given.

    Raises:
        ExportError: it is TorchScript.
    """
    while isinstance(module, (torch._dynamo.OptimizedModule, nn.DataParallel)):
        inner = module._orig_mod if isinstance(module, torch._dynamo.OptimizedModule) else module.module
        assert isinstance(inner, nn.Module)
        module = inner
    if isinstance(module, torch.jit.ScriptModule):
        raise ExportError("a TorchScript module cannot be exported: give the module that it was made of")
    return module


def _signature(
    found: Found, step: Sequence[torch.Tensor], layout: Literal["batch", "batch_time"], distribution: Any
) -> Signature:
    """The card's signature, from one timestep of each output.

    Raises:
        ExportError: a name is taken twice, or a dtype cannot be served.
    """
    if distribution is not None and len(step) > 1:
        raise ExportError(
            f"distribution is for a module with one output; this one gives {', '.join(found.outputs)}"
        )
    examples = found.examples
    try:
        return Signature(
            inputs=tuple(
                Tensor(name=name, dtype=dtype, step_shape=shape)
                for name, dtype, shape in zip(
                    examples.names, examples.dtypes, examples.step_shapes, strict=True
                )
            ),
            outputs=tuple(
                Tensor(
                    name=name,
                    dtype=dtype_name(y, name),
                    step_shape=tuple(y.shape[1:]),
                    distribution=distribution,
                )
                for name, y in zip(found.outputs, step, strict=True)
            ),
            states=found.states,
            layout=layout,
        )
    except ValidationError as error:
        raise ExportError(f"the module's inputs, outputs or states are not valid: {error}") from error
