"""The sequences of the Open Inference Protocol by model and id, and why earlier ones ended."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

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
from streamcell.service.sessions.table import SessionTable

from .requests import Key
from .sequence import Sequence

_ABANDONED_S = 1.0
# Maximum bytes of remembered ends, and bytes of one end without its texts.
_ENDED_BYTES = 16 * 2**20
_END_BYTES = 1024

# An error's class, text and facts; the error itself would keep the frames that it passed through.
_Ending = tuple[type[ServiceError], str, dict[str, str]]


class Sequences:
    """Starts and finds sequences. An id is a model's own, and leads to sequences only. Thread-safe."""

    def __init__(self, sessions: SessionTable, queue_messages: int) -> None:
        self._sessions = sessions
        self._queue_messages = queue_messages
        self._live: dict[Key, Sequence] = {}
        # How sequences ended, oldest first: the error for requests without a START.
        self._errors: OrderedDict[Key, _Ending] = OrderedDict()
        self._errors_bytes = 0
        self._lock = threading.Lock()

    def find(self, key: Key) -> Sequence | None:
        """The sequence that takes requests under that id."""
        sequence = self._live.get(key)
        return None if sequence is None or sequence.closing else sequence

    def start(self, key: Key, model: LoadedModel, peer: str, opening: tuple[bytes, ...] = ()) -> Sequence:
        """Start a sequence that is given `opening`; a live one under that id ends first, after what it has accepted.

        Raises:
            ServerDraining: the server is shutting down; live sequences continue.
            SessionLimit: the model has no room for another session.
        """
        self._sessions.check_not_draining()
        sequence = Sequence(key, model, self._sessions, self._on_ended, peer, self._queue_messages, opening)
        with self._lock:
            before = self._live.get(key)
            self._live[key] = sequence
            if key in self._errors:
                self._forget(key)
        if before is None or not before.close("restarted", sequence):
            sequence.begin()
        return sequence

    def refuse(self, key: Key, error: ServiceError, *, new: bool) -> None:
        """End the sequence after its accepted requests, because one was refused and later ones must not be applied.

        `new`: the request would have started one, so later requests get the refusal even if no sequence is live.
        """
        with self._lock:
            sequence = self._live.get(key)
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

    def end_abandoned(self, attention: Attention, all_read: Callable[[], bool] = lambda: True) -> None:
        """End the sequences that have had no work for a second and whose streams are gone.

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
                sequence.fail(ServerDraining("the server has shut down; the sequence's state is gone"))

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
        while self._errors_bytes > _ENDED_BYTES:
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
