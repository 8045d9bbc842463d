"""Openings of streams that are known again by their bytes: clients of one model open alike.

The first message of a stream differs from another client's in its payload alone. What the bytes of its `open` field ask
for is kept, so a message like an earlier one opens its session without protobuf.
"""

from __future__ import annotations

from typing import TypeVar

from streamcell.proto import pb
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import fast_path_limits
from streamcell.service.sessions.model import Model
from streamcell.service.sessions.session import Output
from streamcell.service.sessions.table import Live

from .messages import opened
from .wire import only_opening

M = TypeVar("M", bound=Model)

_MOST = 256  # kept at a time; none has more than 127 bytes


class KnownOpening:
    """What an opening asks for on one version of a model. Everything but the model's being served has been checked.

    Attributes:
        output: which output steps replies carry.
        step_bytes, few_steps: see `fast_path_limits`.
        before, after: what `greeting_of` has round the session's id.
    """

    def __init__(
        self, request: pb.OpenSession, live: Live[Model], output: Output, context: CallContext[Model]
    ) -> None:
        model = live.model
        self._name, self._version = request.model, request.version
        self._file, self._max_chunk = model.file, model.max_chunk
        self.output = output
        self.step_bytes, self.few_steps = fast_path_limits(model, context.limits)
        # The session's id is the first field of `opened`.
        greeting = greeting_of(live, context)
        self.before, _, self.after = greeting.partition(live.session.session_id.encode())

    def model(self, context: CallContext[M]) -> M | None:
        """The model that it opens a session on; None if that is another version now.

        Raises:
            ModelNotFound, VersionNotFound, ModelUnloading: as `ModelFinder.find`.
        """
        model = context.models.find(self._name, self._version)
        return model if model.file is self._file and model.max_chunk == self._max_chunk else None


def greeting_of(live: Live[Model], context: CallContext[Model]) -> bytes:
    """A StreamResponse that tells a client of its session."""
    told = opened(live, context.sessions.idle_timeout_s, context.limits)
    return pb.StreamResponse(opened=told).SerializeToString()


def keep(
    data: bytes, request: pb.OpenSession, live: Live[Model], output: Output, context: CallContext[Model]
) -> None:
    """Know the opening `request` of the message `data` again, if its session is given nothing."""
    signature, opening = live.model.file.signature, only_opening(data)
    if opening and len(signature.inputs) == 1 and not signature.open_inputs and not request.inputs:
        if len(context.known_openings) >= _MOST:
            context.known_openings.clear()
        context.known_openings[opening[0]] = KnownOpening(request, live, output, context)
