"""A user's own module to an .onnx file that carries its card."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from pydantic import ValidationError
from torch import nn

from streamcell.card import Generation, ModelCard, Signature, Tensor

from .errors import ExportError
from .names import X, Y
from .proof import TOLERANCES, Prover
from .publish import ExportOptions, Settings, publish
from .runner import Runner
from .states import InitialState, detect_states, dtype_name, initial_state_of
from .tensors import as_tensor, one_thread
from .torch_graph import Plain, Step, torch_graph
from .user_module import UserModule

# Batch and time of the example that PyTorch traces; axes of length 0 and 1 would be taken for fixed.
TRACED_BATCH, TRACED_TIME = 3, 4


@one_thread()
def export_module(
    module: nn.Module,
    path: str | Path,
    *,
    example_x: torch.Tensor,
    initial_state: InitialState | None = None,
    state_names: Sequence[str] | None = None,
    time_axis: bool = True,
    layout: Literal["batch", "batch_time"] = "batch",
    distribution: Literal["bernoulli_logits", "categorical_logits", "real"] | None = None,
    generation: Generation | None = None,
    training: Mapping[str, Any] | None = None,
    **options: Unpack[ExportOptions],
) -> ModelCard:
    """Write any module that follows `forward(x, *state) → (y, *state)`, proved against PyTorch.

    PyTorch's exporter sees one timestep (layout "batch": x [batch, *step], y [batch, *out]), because it fixes
    what a recurrent module does to the number of timesteps of the example. A module that is truly generic in
    time can be exported with layout "batch_time"; the proof then runs it on sequences of many lengths.

    Args:
        example_x: [batch, time, *step], any supported dtype; with `time_axis` False [batch, *step]. The proof
            draws its timesteps, so give a fair sample: 16 or more of them, indices in range.
        initial_state: batch → tuple of states before the first step, the same for every row; if not given,
            the module's own `initial_state`; without that the module is stateless. The batch axis of each
            state is found by comparing two batch sizes.
        state_names: the states' names; if not given, the module's `state_names`, else "state" or "state0" ….
        time_axis: False for a module that computes one timestep: x [batch, *step] → y [batch, *out].
        distribution: what y parametrises, for the card.
        generation: how y becomes the next x, for the card, if the server is to generate. The input is called
            "x", the output "y".
        path: as for `export_model`.
        training: provenance for the card, JSON values.
        options: name, description, precision and tolerance; see `ExportOptions`.

    Returns:
        The card that was embedded; its `kind` is the module's class name.

    Raises:
        ProofError: ONNX Runtime's results are over the tolerance, or the module's own steps do not add up to
            its whole sequence; nothing is saved.
        ExportError: the module does not follow the convention, or PyTorch cannot export it.
    """
    settings = Settings.of(path, training=training, **options)
    if layout not in ("batch", "batch_time"):
        raise ExportError(f"layout must be batch or batch_time; got {layout!r}")
    if layout == "batch_time" and not time_axis:
        raise ExportError("layout batch_time needs a module that takes a time axis")
    twin = copy.deepcopy(module).cpu().eval()
    # The copy's own method, so that states are made on the copy's device.
    own = initial_state is None or getattr(initial_state, "__self__", None) is module
    make = initial_state_of(twin, None if own else initial_state)
    states = detect_states(make, getattr(twin, "state_names", None) if state_names is None else state_names)
    user = UserModule(twin, example_x, make, time_axis=time_axis)
    step = user.check(settings.tolerance if settings.precision == "fp32" else TOLERANCES["fp32"])
    try:
        signature = Signature(
            inputs=(Tensor(name=X, dtype=user.x_dtype, step_shape=user.step_shape),),
            outputs=(
                Tensor(
                    name=Y,
                    dtype=dtype_name(step, "y"),
                    step_shape=tuple(step.shape[1:]),
                    distribution=distribution,
                ),
            ),
            states=states,
            layout=layout,
        )
    except ValidationError as error:
        raise ExportError(f"the module's inputs, outputs or states are not valid: {error}") from error
    x = user.draw(TRACED_BATCH, TRACED_TIME)
    graph = torch_graph(
        Step(twin) if time_axis and layout == "batch" else Plain(twin),
        as_tensor(x if layout == "batch_time" else x[:, 0]),
        tuple(map(as_tensor, user.initial(TRACED_BATCH))),
        signature,
        name=settings.name,
        version=settings.versions["streamcell"],
    )

    def prover(runner: Runner) -> Prover:
        return Prover(runner, user, user.draw, user.initial)

    return publish(
        graph,
        signature,
        settings,
        kind=type(module).__name__,
        config={},
        prover=prover,
        generation=generation,
    )
