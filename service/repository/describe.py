"""Describes how to serve a model file: from its sidecar, else its card, else its graph alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy.typing as npt
import onnx

from streamcell.card import CardError, Generation, ModelCard, Signature, read_card
from streamcell.service.errors import shown
from streamcell.service.graph.batch_axis import add_batch_axis, drop_time_axis
from streamcell.service.graph.feeds import Feeds
from streamcell.service.graph.growth import refuse_growing
from streamcell.service.graph.index_ranges import with_index_ranges
from streamcell.service.graph.interface import GraphInterface, check_signature, read_interface
from streamcell.service.load_errors import ModelLoadError, Problems, SidecarError

from .detect import detect
from .fed_inputs import fed_inputs
from .one_timestep import find_one_timestep, said_one_timestep
from .sidecar import Sidecar, SidecarState, inspect_sidecar
from .sidecar_fit import new_axes, resolve
from .signed import SignedFiles
from .state_names import possible_states, state_pairs
from .unbatched import find_unbatched

# They are logged in one line.
_MOST_DOUBTS = 20
Source: TypeAlias = Literal["sidecar", "card", "graph"]


@dataclass(frozen=True, eq=False)
class Description:
    """Describes a model's inputs, outputs and states.

    Attributes:
        signature: of the graph with `new_axes` and without `old_axes`, with the graph's index ranges.
        source: "sidecar", "card" or "graph".
        card: the one inside the file, even if a sidecar overrides its signature.
        constants: graph inputs that the sidecar fixes, by name, with the graph's dtypes.
        generation: how an output becomes the next input; None: the model does not generate.
        name: the sidecar's name for the model, if any.
        new_axes: inputs and outputs without a batch axis, with the index at which to add it.
        old_axes: inputs and outputs with a time axis of one fixed timestep, with its index.
        doubts: the first pairs that may be states of a graph that seems to have none.
        feeds: inputs of the graph with `new_axes` that the server feeds.
    """

    signature: Signature
    source: Source
    card: ModelCard | None = None
    constants: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    generation: Generation | None = None
    name: str | None = None
    new_axes: Mapping[str, int] = field(default_factory=dict)
    old_axes: Mapping[str, int] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    feeds: Feeds | None = None

    def states(self, most: int = 20) -> list[str]:
        """A line for each of at most `most` states with its size, and one with the number of the others."""
        states = self.signature.states
        lines = []
        for state in states[:most]:
            size = f"{state.dtype}{list(state.shape)}"
            lines.append(f"{shown(state.input)} {size} → {shown(state.output)}, {state.session_bytes} bytes")
        return lines if len(states) <= most else [*lines, f"… and {len(states) - most} more"]

    def build(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Make the graph that `signature` describes from the file's."""
        return _built(drop_time_axis(model, self.old_axes), self.new_axes, self.feeds)


def _built(model: onnx.ModelProto, axes: Mapping[str, int], feeds: Feeds | None) -> onnx.ModelProto:
    model = add_batch_axis(model, axes)
    return model if feeds is None else feeds.apply(model)


def describe(
    model: onnx.ModelProto,
    path: Path,
    sidecar: Path | None,
    carded: tuple[SidecarState, ...] = (),
    signed: SignedFiles | None = None,
) -> Description:
    """Read the description of the model in `path`.

    Args:
        model: the file's content; weights are not needed.
        path: the .onnx file, for texts.
        sidecar: the TOML file beside it, if there is one.
        carded: states described by cards, unless the sidecar describes a state of the same input.
        signed: what the sidecar must be, if the model is signed.

    Raises:
        ModelLoadError: it cannot be served; the error names everything that is wrong.
    """
    try:
        card = read_card(model)
    except CardError as error:
        raise ModelLoadError(str(error)) from error
    stated: set[str] = set()
    if sidecar is not None:
        said, problems = inspect_sidecar(sidecar, signed)
        if said is not None:
            said = said.with_states(carded)
            states = [(state.input, state.output) for state in said.states]
            refuse_growing(model.graph, read_interface(model.graph), states, by_name=False)
        found, stated, model = _from_sidecar(said, problems, card, model, path, sidecar)
    elif card is not None:
        found = Description(card.signature, "card", card, generation=card.generation)
    else:
        interface = read_interface(model.graph)
        refuse_growing(model.graph, interface, state_pairs(interface.inputs, interface.outputs), by_name=True)
        old_axes = find_one_timestep(interface)
        interface = read_interface(drop_time_axis(model, old_axes).graph)
        unbatched = find_unbatched(interface)
        signature = detect(interface, unbatched, sidecar_name=path.with_suffix(".toml").name)
        axes = dict.fromkeys(unbatched, 0)
        doubts = _doubts(interface, signature)
        found = Description(signature, "graph", new_axes=axes, old_axes=old_axes, doubts=doubts)
        model = found.build(model)
    check_signature(read_interface(model.graph), found.signature, found.constants)
    signature = with_index_ranges(model.graph, found.signature, stated)
    return replace(found, signature=signature)


def _doubts(interface: GraphInterface, signature: Signature) -> tuple[str, ...]:
    """The first pairs that may be states, by their shapes, in a graph that seems to have none."""
    if signature.states:
        return ()
    return tuple(
        f"input {shown(i)}, {interface.inputs[i]}, and output {shown(o)}, {interface.outputs[o]}"
        for i, o in islice(possible_states(interface.inputs, interface.outputs), _MOST_DOUBTS)
    )


def _from_sidecar(
    said: Sidecar | None,
    problems: Problems,
    card: ModelCard | None,
    model: onnx.ModelProto,
    path: Path,
    sidecar: Path,
) -> tuple[Description, set[str], onnx.ModelProto]:
    """The description, the inputs whose index ranges the sidecar states, and the graph that is described."""
    if said is not None and said.stages and path != sidecar:
        raise SidecarError(
            f"stages: a pipeline has no .onnx file beside it, this one has {path.name}; rename one of them",
            sidecar,
        )
    if card is not None and not (said is not None and said.override):
        problems.add(f"{path.name} has a card; remove this file, or set `override = true` to use it instead")
    if said is not None:
        with problems.noted():
            old_axes = said_one_timestep(said, read_interface(model.graph))
            if old_axes:
                said = said.model_copy(update={"layout": "batch", "time_axis": None})
                model = drop_time_axis(model, old_axes)
            axes = new_axes(said)
            rest, feeds = fed_inputs(said, read_interface(model.graph).with_axes(axes, 1))
            model = _built(model, axes, feeds)
            interface = read_interface(model.graph)
            signature, constants = resolve(
                rest,
                interface,
                () if feeds is None else feeds.states(),
                () if feeds is None else feeds.given,
            )
            check_signature(interface, signature, constants)
            if not problems:
                stated = {tensor.name for tensor in said.inputs if tensor.index_range is not None}
                found = Description(
                    signature,
                    "sidecar",
                    card,
                    constants,
                    said.generation,
                    said.name,
                    axes,
                    old_axes,
                    feeds=feeds,
                )
                return found, stated, model
    raise SidecarError(str(problems), sidecar, problems, problems.context)
