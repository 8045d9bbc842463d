"""Models that take no new sessions and wait for their last one to end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import structlog

from streamcell.service.errors import ModelUnloaded
from streamcell.service.sessions.table import SessionTable

from .loaded_model import LoadedModel

_log = structlog.get_logger(__name__)
# Seconds between two looks; they grow while nothing happens.
_LEAST_S, _MOST_S = 0.01, 0.5
# A call may have found a model just before it was swapped out, and open its session a moment later.
_SETTLE_S = 0.25


@dataclass(slots=True)
class _Entry:
    model: LoadedModel
    idle_from_s: float
    deadline_s: float = math.inf
    gone: list[Callable[[], None]] = field(default_factory=list)
    ended: bool = False


class DrainingModels:
    """For the model control's thread, which calls `tick` every `pause_s`; any thread may iterate."""

    def __init__(self, sessions: SessionTable, release: Callable[[LoadedModel], None]) -> None:
        """`release` releases a model that has no sessions."""
        self._sessions = sessions
        self._release = release
        self._entries: tuple[_Entry, ...] = ()
        self._pause_s = _LEAST_S

    def __iter__(self) -> Iterator[LoadedModel]:
        return (entry.model for entry in self._entries)

    def add(self, model: LoadedModel) -> None:
        """Release `model` when its remaining sessions have ended."""
        self._entries = (*self._entries, _Entry(model, time.monotonic() + _SETTLE_S))
        self._pause_s = _LEAST_S

    def unload(self, name: str, grace_s: float, gone: Callable[[], None]) -> None:
        """Take no more sessions on any version of `name`; those left after `grace_s` end with MODEL_UNLOADED.

        `gone` is called once all of them have been released.
        """
        entries = [entry for entry in self._entries if entry.model.file.name == name]
        left = len(entries)
        now_s = time.monotonic()

        def one_gone() -> None:
            nonlocal left
            left -= 1
            if not left:
                gone()

        for entry in entries:
            entry.model.batcher.close()
            entry.idle_from_s = now_s
            entry.deadline_s = min(entry.deadline_s, now_s + grace_s)
            entry.gone.append(one_gone)
        self._pause_s = _LEAST_S

    @property
    def pause_s(self) -> float:
        """Seconds until the next look; infinite if nothing is draining."""
        return self._pause_s if self._entries else math.inf

    def tick(self) -> bool:
        """Release idle models, and end sessions whose grace is over; True if a model was released."""
        now_s = time.monotonic()
        idle = [
            entry
            for entry in self._entries
            if now_s >= entry.idle_from_s and entry.model.batcher.close_if_idle()
        ]
        self._entries = tuple(entry for entry in self._entries if entry not in idle)
        for entry in idle:
            self._release(entry.model)
            for gone in entry.gone:
                gone()
        for entry in self._entries:
            if not entry.ended and now_s >= entry.deadline_s:
                entry.ended = True
                self._end(entry.model)
        self._pause_s = _LEAST_S if idle else min(_MOST_S, self._pause_s * 1.3)
        return bool(idle)

    def _end(self, model: LoadedModel) -> None:
        name, version = model.file.name, model.file.version
        left = self._sessions.on(model)
        _log.warning("unloading ends live sessions", model=name, version=version, streams=len(left))
        for live in left:
            live.session.listener.fail(
                ModelUnloaded(
                    f"model {name!r} was unloaded; the session's state is gone",
                    model=name,
                    session_id=live.session.session_id,
                    step_index=live.session.figures()[0],
                )
            )
