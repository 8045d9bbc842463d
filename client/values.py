"""Frozen values that describe models and sessions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from streamcell.proto import pb


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of one timestep of one session, without batch and time axes."""

    name: str
    dtype: str
    step_shape: tuple[int, ...]
    # "bernoulli_logits", "categorical_logits", "real", or "" if the model does not say.
    distribution: str = ""
    # Of an open input: whether it may be left out.
    optional: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """A tensor that the server keeps for each session."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """How a model's output becomes its next input."""

    output: str
    input: str
    # "real", "bernoulli" or "categorical".
    head: str
    # "value", "one_hot" or "index".
    encoding: str
    # Class k is token `offset` + k.
    offset: int
    # The token that a generation begins with; None: it begins with what the last output gives.
    start: int | None
    # The class that ends a generation; None: none does.
    stop: int | None
    # The maximum steps of one generation.
    max_steps: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be opened."""

    name: str
    version: str
    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    # Empty for a stateless model.
    states: tuple[State, ...]
    # The card embedded in the file; empty for a model described by a sidecar.
    card: dict[str, Any]
    live_sessions: int
    max_sessions: int
    # None if the model cannot generate.
    generation: GenerationInfo | None = None
    # The server's restrictions of the model, each with its reason; empty if batching does not change its outputs.
    restrictions: tuple[str, ...] = ()
    # What a session is given when it opens; `step_shape` is the value's shape.
    open_inputs: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A live session of any client."""

    id: str
    model: str
    version: str
    # "open" before its first step, then "active".
    state: str
    step_index: int
    queued_messages: int
    age_s: float
    idle_s: float
    peer: str
    # 1; for a pool, which is listed as one session, its live members; its `step_index` is the sum of theirs.
    members: int = 1


@dataclass(frozen=True, slots=True)
class Replica:
    """A server, one of several if a proxy stands before it."""

    name: str
    # Where clients reach it without a proxy, "host:port"; empty: only through one.
    address: str = ""
    # The host and port of its shared store; empty if it has none, and for all but operators.
    store: str = ""
    # Seconds for which its lease on the sessions in the store is valid; 0 if it has lost it.
    lease_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Available:
    """A version of a model that is served or could be."""

    name: str
    version: str
    # "READY", "LOADING", "UNLOADING", "UNAVAILABLE", or "" if nobody has asked for it.
    state: str
    # Why it is in that state; may be empty.
    reason: str


def tensors(specs: Iterable[pb.TensorSpec]) -> tuple[Tensor, ...]:
    """Wire messages as values."""
    return tuple(
        Tensor(spec.name, spec.dtype, tuple(spec.step_shape), spec.distribution, spec.optional)
        for spec in specs
    )


def generation(message: pb.Model | pb.SessionOpened) -> GenerationInfo | None:
    """How a model generates, as a value; None if it does not."""
    if not message.HasField("generation"):
        return None
    spec = message.generation
    return GenerationInfo(
        output=spec.output,
        input=spec.input,
        head=spec.head,
        encoding=spec.encoding,
        offset=spec.offset,
        start=spec.start if spec.HasField("start") else None,
        stop=spec.stop if spec.HasField("stop") else None,
        max_steps=spec.max_steps,
    )


def model(message: pb.Model) -> Model:
    """A wire model as a value."""
    return Model(
        name=message.name,
        version=message.version,
        kind=message.kind,
        inputs=tensors(message.inputs),
        outputs=tensors(message.outputs),
        states=tuple(
            State(state.input, state.dtype, tuple(state.shape), state.bytes) for state in message.states
        ),
        card=json.loads(message.card_json) if message.card_json else {},
        live_sessions=message.live_sessions,
        max_sessions=message.max_sessions,
        generation=generation(message),
        restrictions=tuple(message.restrictions),
        open_inputs=tensors(message.open_inputs),
    )


def replica(message: pb.Replica) -> Replica:
    """A server as a value."""
    return Replica(message.name, message.address, message.store, message.lease_s)


def live_session(message: pb.Session) -> LiveSession:
    """A wire session as a value."""
    state = pb.SessionState.Name(message.state).removeprefix("SESSION_STATE_").lower()
    return LiveSession(
        id=message.session_id,
        model=message.model,
        version=message.version,
        state=state,
        step_index=message.step_index,
        queued_messages=message.queued_messages,
        age_s=message.age_s,
        idle_s=message.idle_s,
        peer=message.peer,
        members=message.members,
    )
