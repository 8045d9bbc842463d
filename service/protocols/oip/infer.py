"""Turns a request of the Open Inference Protocol into work, for every kind of call."""

from __future__ import annotations

import contextlib
import time

from streamcell.service.access.grant import Grant
from streamcell.service.errors import (
    MessageTooLarge,
    NotFound,
    SequenceGap,
    SequenceNotStarted,
    ServerDraining,
    ServiceError,
    SessionLimit,
)
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import make_work
from streamcell.service.sessions.resume_errors import RepliesGone
from streamcell.service.sessions.session import Output, Work

from .entry import IncomingRequest
from .request_cache import RequestCache
from .requests import MOST_ID_BYTES, Flags, ParsedRequest, ReplyTemplates, flags, parse, plan
from .rows import Rows, openings
from .sequence import Sequence
from .sequences import Sequences


class Infer:
    """The common part of all calls that run a model. Thread-safe."""

    def __init__(
        self, context: CallContext[LoadedModel], max_message_bytes: int, queue_messages: int
    ) -> None:
        """Make it.

        Args:
            max_message_bytes: the most that one request may hold.
            queue_messages: requests of a sequence that may wait before their streams are no longer read.
        """
        self.context = context
        self.plans = RequestCache()
        self.sequences = Sequences(context.sessions, queue_messages, context.kept, context.grant)
        self._answers = ReplyTemplates()
        self._max_message_bytes = max_message_bytes

    def share(self, among: int) -> None:
        """Take no more memory from now on than one of so many may, which have what one alone would have."""
        self.plans.among = self.sequences.among = among

    def read(self, entry: IncomingRequest, data: bytes) -> bool:
        """Take a request that the cache does not know; True if there is room for more. Errors go to `entry`."""
        found = Flags(None)
        model: LoadedModel | None = None
        try:
            request = parse(data)
            if len(id_ := request.id.encode()) <= MOST_ID_BYTES:
                entry.id = id_
            found = flags(request)
            model = self._model(found, request.model_name, request.model_version)
            self._check_size(data)
            entry.plan, payloads = plan(request, found, model.file, self._answers)
            if len(data) + 0x80 <= self._max_message_bytes:  # one like it may have a longer id
                self.plans.keep(data, entry.plan)
        except ServiceError as error:
            self._refuse(entry, found, model, error)
            return True
        return self.run(entry, payloads, data)

    def run(self, entry: IncomingRequest, payloads: tuple[bytes, ...], data: bytes) -> bool:
        """Take a request whose plan is known; True if there is room for more. Errors go to `entry`."""
        asked = entry.plan
        model: LoadedModel | None = None
        try:
            if asked.flags.key is not None and asked.file.signature.states:
                return self._step(entry, payloads, data)
            model = self.context.models.find(asked.file.name, asked.version)
            if model.file is not asked.file:  # another version has been loaded since
                return self.read(entry, data)
            if self.context.sessions.draining:
                raise ServerDraining("this server is shutting down and takes no new requests")
            if self.context.grant is not None:
                self.context.grant.check("predict")
                self.context.grant.expect_room()
            Rows(entry, model).run(payloads, self.context.limits, self.context.grant)
        except ServiceError as error:
            self._refuse(entry, asked.flags, model, error)
        return True

    def _step(self, entry: IncomingRequest, payloads: tuple[bytes, ...], data: bytes) -> bool:
        asked = entry.plan
        key = asked.flags.key
        assert key is not None
        model: LoadedModel | None = None
        grant = self.context.grant
        try:
            flags = asked.flags
            again: Sequence | None = None
            if grant is not None:
                self._charge(grant, asked)
            while True:
                if flags.start and flags.number:
                    again = self.sequences.restarted(flags)
                if flags.start and again is None:
                    model = self.context.models.find(asked.file.name, asked.version)
                    if model.file is not asked.file:
                        return self.read(entry, data)
                    work = self._work(model, asked, payloads)
                    opening: tuple[bytes, ...] = ()
                    if model.file.signature.open_inputs:
                        opening = next(openings(model, asked, self.context.limits), ())
                    sequence = self.sequences.start(
                        key, model, entry.peer, opening, flags.token, entry.subject
                    )
                else:
                    found = again or self.sequences.find(key, flags.number, flags.token)
                    model = None if found is None else found.model
                    if found is None or model is None:
                        return self._not_started(entry, asked)
                    if asked.version not in ("", model.file.version):
                        return self._fail(entry, asked.flags, _other_version(key, asked.version, model))
                    if model.file is not asked.file:
                        return self.read(entry, data)
                    work = self._work(model, asked, payloads)
                    sequence = found
                if flags.number:
                    room = self._add_numbered(sequence, entry, work)
                else:
                    room = sequence.add(entry, work, entry.run_after_arrivals)
                if room is None:  # another call has ended or restarted it
                    continue
                usual = not (flags.start or flags.end or flags.number or flags.token) and grant is None
                if usual and work.steps <= model.max_chunk:
                    asked.sequence = sequence
                return room
        except ServiceError as error:
            self._refuse(entry, asked.flags, model, error)
            return True

    def _add_numbered(self, sequence: Sequence, entry: IncomingRequest, work: Work) -> bool | None:
        """As `Sequence.add_numbered`; a request out of order gets an error, and its sequence continues."""
        try:
            return sequence.add_numbered(entry, work, entry.run_after_arrivals)
        except (SequenceGap, RepliesGone) as error:
            if (model := sequence.model) is not None:
                model.metrics.request_failed(error)
            return self._fail(entry, entry.plan.flags, error)

    @staticmethod
    def _charge(grant: Grant, asked: ParsedRequest) -> None:
        """Charge a sequence's request. One within a live sequence is not refused, which would end it."""
        grant.check("step")
        if asked.flags.start:
            grant.expect_room()
        grant.spend(asked.form.steps)

    def _work(self, model: LoadedModel, asked: ParsedRequest, payloads: tuple[bytes, ...]) -> Work:
        if asked.form.steps == 1:  # within every limit, and checked with its batch
            return arrived(payloads, 1)
        return make_work(model, self.context.limits, payloads, asked.form.steps, Output.ALL, 0)

    def _check_size(self, data: bytes) -> None:
        if len(data) > self._max_message_bytes:
            raise MessageTooLarge(
                f"a request may have {self._max_message_bytes} bytes, this one has {len(data)}",
                limit=self._max_message_bytes,
                got=len(data),
            )

    def _model(self, found: Flags, name: str, version: str) -> LoadedModel:
        """The model that a request is for: the version that its sequence is on, else the one it names or the newest."""
        if found.key is not None and not found.start:
            sequence = self.sequences.find(found.key, found.number, found.token)
            model = None if sequence is None else sequence.model
            if model is not None and version in ("", model.file.version):
                return model
        return self.context.models.find(name, version)

    def _refuse(
        self, entry: IncomingRequest, found: Flags, model: LoadedModel | None, error: ServiceError
    ) -> None:
        """Answer a request with `error`. Its sequence, if any, ends: later requests must not be applied."""
        stateful = model is None or bool(model.file.signature.states)
        # A refused START ends a live sequence too: else the steps behind it would reach that one.
        if found.key is not None and stateful and (found.start or not isinstance(error, NotFound)):
            new = found.start and model is not None
            self.sequences.refuse(found.key, error, new=new, token=found.token)
        # The session table has already counted a START without room.
        if model is not None and not (found.start and isinstance(error, SessionLimit)):
            model.metrics.request_failed(error)
        self._fail(entry, found, error)

    def _not_started(self, entry: IncomingRequest, asked: ParsedRequest) -> bool:
        assert asked.flags.key is not None
        error = self.sequences.not_started(asked.flags.key)
        with contextlib.suppress(ServiceError):  # the model may have been unloaded
            self.context.models.find(asked.file.name).metrics.request_failed(error)
        return self._fail(entry, asked.flags, error)

    def _fail(self, entry: IncomingRequest, found: Flags, error: ServiceError) -> bool:
        entry.fail(error, found.key)
        return True


def _other_version(key: tuple[str, int | str], version: str, model: LoadedModel) -> SequenceNotStarted:
    return SequenceNotStarted(
        f"inference request for sequence {key[1]} to model {key[0]!r} must specify the START flag on the first request "
        f"of the sequence: on version {version} it has not been started, on version {model.file.version} it is live",
        model=key[0],
        sequence=key[1],
    )


def arrived(payloads: tuple[bytes, ...], steps: int) -> Work:
    """Work for a request whose plan has been used before: all checks have been made."""
    return Work(payloads, steps, Output.ALL, 0, time.perf_counter())
