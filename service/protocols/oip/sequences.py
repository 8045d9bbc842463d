"""The sequences of the Open Inference Protocol by model and id, and why earlier ones ended."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from streamcell.service.access.grant import Grant
from streamcell.service.durability.found import Found
from streamcell.service.errors import (
    InvalidArgument,
    SequenceGap,
    SequenceNotStarted,
    ServerDraining,
    ServiceError,
    cut,
    shown,
)
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.sessions.attention import Attention
from streamcell.service.sessions.kept_replies import KeptRoom
from streamcell.service.sessions.table import SessionTable, not_found

from .numbers import recorded
from .requests import Flags, Key
from .sequence import Sequence

_ABANDONED_S = 1.0
# Maximum bytes of remembered ends, and bytes of one end without its texts.
_ENDED_BYTES = 16 * 2**20
_END_BYTES = 1024

# An error's class, text and facts; the error itself would keep the frames that it passed through.
_Ending = tuple[type[ServiceError], str, dict[str, str]]


class Sequences:
    """Starts and finds sequences. An id is a model's own, and leads to sequences only. Thread-safe.

    Attributes:
        among: so many of them share the bound on remembered ends.
        last: whether they go into their models' journals; those of a connection end with it, and so with the process.
    """

    def __init__(
        self,
        sessions: SessionTable,
        queue_messages: int,
        room: KeptRoom | None = None,
        owner: Grant | None = None,
    ) -> None:
        """Make it, without sequences.

        Args:
            room: for the replies to requests that say their numbers; None if this server keeps none.
            owner: whose they are, if there are tenants: each has its own.
        """
        self._sessions = sessions
        self._room = room
        self._owner = owner
        self._queue_messages = queue_messages
        self._live: dict[Key, Sequence] = {}
        # How sequences ended, oldest first: the error for requests without a START.
        self._errors: OrderedDict[Key, _Ending] = OrderedDict()
        self._errors_bytes = 0
        self.among = 1
        self.last = True
        self._lock = threading.Lock()

    def find(self, key: Key, number: int = 0, token: str = "") -> Sequence | None:
        """The sequence that takes such a request under that id, or has taken the one of that number."""
        sequence = self._live.get(key)
        if sequence is None or ((token or sequence.token_hash) and not sequence.opens_to(token)):
            return None
        return None if sequence.closing and not sequence.has(number) else sequence

    def restarted(self, flags: Flags) -> Sequence | None:
        """The live sequence that a START with a number has started before; None if it is to start one."""
        assert flags.key is not None
        sequence = self.find(flags.key, 0, flags.token) if flags.number else None
        return sequence if sequence is not None and sequence.has(flags.number) else None

    def start(
        self,
        key: Key,
        model: LoadedModel,
        peer: str,
        opening: tuple[bytes, ...] = (),
        token: str = "",
        by: str = "",
    ) -> Sequence:
        """Start a sequence with `opening`; a live one under that id ends first, after its accepted requests.

        `by` is as for `SessionTable.open`.

        Raises:
            ServerDraining: the server is shutting down; live sequences continue.
            SessionLimit: the model has no room for another session.
            SequenceNotStarted: a live one under that id has another token.
        """
        self._sessions.check_not_draining()
        sequence = Sequence(
            key,
            model,
            self._sessions,
            self._on_ended,
            peer,
            self._queue_messages,
            opening,
            token,
            self._room,
            self._owner,
            lasts=self.last,
            by=by,
        )
        with self._lock:
            before = self._live.get(key)
            stolen = (
                before is not None and before.token_hash and not (before.closing or before.opens_to(token))
            )
            if not stolen:
                self._live[key] = sequence
                if key in self._errors:
                    self._forget(key)
        if stolen:
            raise self.not_started(key)
        if before is None or not before.close("restarted", sequence):
            sequence.begin()
        return sequence

    def recover(self, found: Found, model: LoadedModel) -> int:
        """Bring back a sequence that an earlier process has left; its slot.

        Raises:
            DecodeError: its record is none.
            SessionNotFound: there is one under its id.
            SessionLimit, ServerDraining, …: as `SessionTable.open`.
        """
        key, opening = recorded(found)
        queue = self._queue_messages
        sequence = Sequence(
            key, model, self._sessions, self._on_ended, "", queue, opening, "", self._room, self._owner
        )
        with self._lock:
            if key in self._live:
                raise not_found(found.session.hex())
            slot = sequence.recover(found)
            self._live[key] = sequence
        return slot

    def refuse(self, key: Key, error: ServiceError, *, new: bool, token: str = "") -> None:
        """End the sequence after its accepted requests, because one was refused and later ones must not be applied.

        `new`: the request would have started one, so later requests get the refusal even if no sequence is live.
        Nothing happens if the sequence has another token.
        """
        with self._lock:
            sequence = self._live.get(key)
            if sequence is not None and sequence.token_hash and not sequence.opens_to(token):
                return
            if new or (sequence is not None and not sequence.closing):
                self._remember(key, error)
        if sequence is not None:
            sequence.close(error.reason.lower())

    def not_started(self, key: Key) -> ServiceError:
        """The error for a request without a START that no sequence takes."""
        model, sequence = key
        text = (
            f"inference request for sequence {cut(sequence)} to model {shown(model)} must specify the START flag on "
            "the first request of the sequence"
        )
        with self._lock:
            ending = self._errors.get(key)
        if ending is None:
            return SequenceNotStarted(text, model=model, sequence=sequence)
        kind, why, facts = ending
        if issubclass(kind, InvalidArgument):
            kind, why = SequenceGap, f"an earlier request of the sequence was refused: {why}"
        return kind(f"{why}; {text}", **{**facts, "model": model, "sequence": sequence})

    def __len__(self) -> int:
        """How many sequences live."""
        return len(self._live)

    def end_abandoned(self, attention: Attention, all_read: Callable[[], bool] = lambda: True) -> None:
        """End the sequences that have had no work for a second and whose streams are gone, or wait for them no more.

        The arguments are those of `SessionTable.expire_idle`.
        """
        before_s = attention.before_s(_ABANDONED_S)

        def abandoned() -> list[Sequence]:
            with self._lock:
                sequences = list(self._live.values())
            return [sequence for sequence in sequences if sequence.abandoned(before_s)]

        if abandoned() and all_read():
            attention.attended()
            for sequence in abandoned():
                sequence.leave(ServerDraining("the server has shut down; the sequence's state is gone"))

    def _on_ended(self, sequence: Sequence, error: ServiceError | None) -> None:
        with self._lock:
            if self._live.get(sequence.key) is not sequence:
                return
            del self._live[sequence.key]
            if error is not None:
                self._remember(sequence.key, error)

    def _remember(self, key: Key, error: ServiceError) -> None:
        self._forget(key)
        ending = self._errors[key] = (type(error), str(error), error.facts)
        self._errors_bytes += _size(key, ending)
        while self._errors_bytes > _ENDED_BYTES // self.among:
            self._forget(next(iter(self._errors)))

    def _forget(self, key: Key) -> None:
        ending = self._errors.pop(key, None)
        if ending is not None:
            self._errors_bytes -= _size(key, ending)


def _size(key: Key, ending: _Ending) -> int:
    model, sequence = key
    _, text, facts = ending
    texts = (model, str(sequence), text, *facts.values())
    # Python keeps up to four bytes a character.
    return _END_BYTES + sum(len(each) * (1 if each.isascii() else 4) for each in texts)
