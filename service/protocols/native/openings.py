"""Checks of openings, what those of resumable sessions ask for, and the streams that bring them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from streamcell.proto import pb
from streamcell.service.batching.inline import AfterArrivals
from streamcell.service.errors import MalformedMessage, ServiceError
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.openings import check_opening, given_in
from streamcell.service.protocols.common.requests import check_dtypes
from streamcell.service.sessions.kept_replies import Place
from streamcell.service.sessions.model import Model
from streamcell.service.sessions.resume_errors import RepliesGone, StateBehind
from streamcell.service.transport.calls import Call

M = TypeVar("M", bound=Model)

_ID_BYTES, _TOKEN_BYTES = 16, 32


def check_open(request: pb.OpenSession, context: CallContext[M]) -> tuple[M, tuple[bytes, ...]]:
    """The model that `request` names, and the values of its session's opening.

    Raises:
        ModelNotFound, VersionNotFound, ModelUnloading: as `ModelFinder.find`.
        WrongDtype, WrongInputCount, …: the dtypes or the values do not fit.
    """
    model = context.models.find(request.model, request.version)
    check_dtypes(model.file.signature, request.dtypes)
    return model, check_values(request, model, context)


def check_values(request: pb.OpenSession, model: M, context: CallContext[M]) -> tuple[bytes, ...]:
    """The values of a session's opening on `model`.

    Raises:
        WrongInputCount, WrongByteCount, …: they do not fit.
    """
    signature = model.file.signature
    if not signature.open_inputs and not request.inputs:
        return ()
    given = given_in(signature, request.inputs)
    return check_opening(signature, given, allow_non_finite=context.limits.allow_non_finite)


def check_secrets(session: bytes, token: bytes, what: str) -> None:
    """Raise MalformedMessage unless an id and a token have their sizes."""
    if len(session) != _ID_BYTES or len(token) != _TOKEN_BYTES:
        raise MalformedMessage(
            f"{what} needs a `session` of {_ID_BYTES} bytes and a `token` of {_TOKEN_BYTES}, "
            f"got {len(session)} and {len(token)}"
        )


def is_resumable(request: pb.OpenSession) -> bool:
    """True if an opening asks for a session that outlives its stream; one with a snapshot does."""
    return lasts(request) or bool(request.snapshot)


def lasts(request: pb.OpenSession | pb.OpenFrames) -> bool:
    """True if an opening asks for a session, or stream of frames, that outlives its call."""
    lasting = request.durability > pb.DURABILITY_NONE
    return bool(request.session or request.token or request.window or request.resume or lasting)


@dataclass(frozen=True, slots=True)
class Resume:
    """What the opening of a resumable session says.

    Attributes:
        session_id: in hexadecimal.
        token: the secret.
        window: of the session, if it is created now.
        attempt: higher than at each earlier opening.
        place: what the client has.
        held: the lowest number of a message that will still come.
        first: the number of the first message behind this opening; 0: the client waits for the reply.
        must_exist: the session is not created.
        durability: what the client needs, DURABILITY_UNSPECIFIED for what the server gives.
        again: a front end repeats it, because an engine process that took it may have died.
    """

    session_id: str
    token: bytes
    window: int
    attempt: int
    place: Place
    held: int
    first: int
    must_exist: bool
    durability: int
    again: bool

    @classmethod
    def of(
        cls,
        asked: pb.OpenSession | pb.OpenFrames,
        received_steps: int = 0,
        *,
        alone: bool,
        again: bool,
    ) -> Resume:
        """What `asked` says, which `lasts`; `again` as the attribute.

        Args:
            received_steps: the client has so many timesteps of a generation.
            alone: its message carries nothing else.

        Raises:
            MalformedMessage: a field is missing or has a wrong size, or the message carries more.
        """
        check_secrets(asked.session, asked.token, "a resumable session")
        if not asked.window or not asked.attempt:
            raise MalformedMessage("a resumable session needs a `window` and an `attempt` of 1 or more")
        if not alone:
            raise MalformedMessage("the opening of a resumable session carries no steps: send them behind it")
        received = asked.received
        return cls(
            asked.session.hex(),
            asked.token,
            asked.window,
            asked.attempt,
            (received, received_steps),
            asked.held or received + 1,
            asked.first,
            asked.resume or max(received, received_steps, asked.held - 1, asked.first - 1) > 0,
            asked.durability,
            again,
        )

    def late(self, attempt: int) -> bool:
        """True if the opening of that `attempt`, which was taken, came behind this one.

        A front end opens each of its streams once in each engine process, so its repeats cannot arrive late.
        """
        return self.attempt + self.again <= attempt


class Stream(Protocol):
    """One of a session's streams, as far as the session needs it."""

    call: Call
    after_arrivals: AfterArrivals | None  # as in `Batcher.submit`
    next: int  # number of its next message; 0: it sends none before its opening is answered
    half_closed: bool  # the client sends no more messages

    def finish(self) -> None:
        """End the call: the client has half-closed, and every message is answered."""


def compare(
    asked: Resume, applied: int, lacked: list[bytes] | None
) -> tuple[ServiceError | None, list[bytes]]:
    """The error that an opening gets from a session that has applied so many messages; or what its client lacks.

    `lacked` is that; None if some of it is gone.
    """
    first = asked.first or asked.held
    if first > applied + 1:
        return StateBehind(
            f"the session has applied {applied} messages, and the client's next one is {first}: "
            "those between are lost; open a new session",
            applied=applied,
            held=first,
        ), []
    if lacked is None:
        return RepliesGone(
            f"the session has applied {applied} messages, the client has {asked.place[0]} replies, and those "
            "between are no longer kept; resume with `received` = `applied` to go on without them",
            applied=applied,
            received=asked.place[0],
        ), []
    return None, lacked
