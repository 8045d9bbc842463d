"""Models and sessions as the API shows them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from streamcell.card import OpenInput, Tensor
from streamcell.proto import pb
from streamcell.service.protocols.common.requests import Limits
from streamcell.service.sessions.model import Model
from streamcell.service.sessions.session import Session
from streamcell.service.sessions.table import Live

if TYPE_CHECKING:  # a front end has no engine to load
    from streamcell.service.lifecycle.loaded_model import LoadedModel


def tensor_spec(tensor: Tensor) -> pb.TensorSpec:
    """One input or output of a step."""
    return pb.TensorSpec(
        name=tensor.name,
        dtype=tensor.dtype,
        step_shape=tensor.step_shape,
        distribution=tensor.distribution or "",
        index_ranges=[pb.IndexRange(low=low, high=high) for low, high in tensor.index_ranges],
        optional=isinstance(tensor, OpenInput) and tensor.default is not None,
    )


def model_message(model: LoadedModel, limits: Limits) -> pb.Model:
    """A model with its signature, its card and its load."""
    signature, card = model.file.signature, model.file.card
    return pb.Model(
        name=model.file.name,
        version=model.file.version,
        kind=model.kind,
        inputs=map(tensor_spec, signature.inputs),
        outputs=map(tensor_spec, signature.outputs),
        states=[
            pb.StateSpec(
                input=state.input,
                output=state.output,
                dtype=state.dtype,
                shape=state.shape,
                bytes=state.session_bytes,
            )
            for state in signature.states
        ],
        card_json=card.model_dump_json() if card else "",
        live_sessions=model.batcher.live,
        max_sessions=model.max_sessions,
        generation=generation_spec(model, limits),
        restrictions=model.restrictions,
        open_inputs=map(tensor_spec, signature.open_inputs),
    )


def generation_spec(model: Model, limits: Limits) -> pb.GenerationSpec | None:
    """How the model generates; None if it does not."""
    generation = model.file.generation
    if generation is None:
        return None
    return pb.GenerationSpec(
        output=generation.output,
        input=generation.input,
        head=generation.head,
        encoding=generation.encoding,
        offset=generation.offset,
        start=generation.start,
        stop=generation.stop,
        max_steps=limits.max_generate_steps,
    )


def session_message(live: Live[Model]) -> pb.Session:
    """A live session."""
    session, now_s = live.session, time.monotonic()
    step_index, fresh, last_used_s = session.figures()
    return pb.Session(
        session_id=session.session_id,
        model=live.model.file.name,
        version=live.model.file.version,
        state=_state(session, fresh),
        step_index=step_index,
        queued_messages=session.queued,
        age_s=now_s - session.opened_s,
        idle_s=now_s - last_used_s,
        peer=session.peer,
        members=session.members,
    )


def _state(session: Session, fresh: bool) -> pb.SessionState:
    if session.detached_s is not None:
        return pb.SESSION_STATE_DETACHED
    return pb.SESSION_STATE_OPEN if fresh else pb.SESSION_STATE_ACTIVE


def opened(live: Live[Model], idle_timeout_s: float, limits: Limits) -> pb.SessionOpened:
    """The description of a session that its client gets when it opens."""
    signature = live.model.file.signature
    return pb.SessionOpened(
        session_id=live.session.session_id,
        model=live.model.file.name,
        version=live.model.file.version,
        inputs=map(tensor_spec, signature.inputs),
        outputs=map(tensor_spec, signature.outputs),
        max_steps_per_message=limits.max_steps_per_message,
        idle_timeout_s=idle_timeout_s,
        generation=generation_spec(live.model, limits),
        open_inputs=map(tensor_spec, signature.open_inputs),
        max_message_bytes=limits.max_message_bytes,
    )
