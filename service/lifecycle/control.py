"""Loads and unloads models while the server serves: at a client's request, or as the folder of models changes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import structlog

from streamcell.service.control_errors import ModelControlOff, ModelLoadFailed
from streamcell.service.errors import ModelNotFound, ServerDraining, ServiceError, shown
from streamcell.service.gc_tuning import refreeze_heap
from streamcell.service.load_errors import ModelLoadError
from streamcell.service.repository.locate import Located, concerning, locate
from streamcell.service.sessions.table import SessionTable
from streamcell.service.settings import Settings

from .changes import ModelChanges, ModelPoll
from .loaded_model import LoadedModel


@dataclass(frozen=True)
class IndexEntry:
    """One version of a model.

    Attributes:
        state: "READY", "LOADING", "UNLOADING", "UNAVAILABLE", or "" for one that was not asked for.
        reason: why it is in that state; may be empty.
    """

    name: str
    version: str
    state: str
    reason: str = ""


def make_index(
    located: Iterable[Located],
    served: Iterable[LoadedModel],
    draining: Iterable[LoadedModel],
    *,
    loading: str | None,
    failed: Mapping[str, str],
) -> list[IndexEntry]:
    """One entry a version, by name, the newest version last.

    Args:
        located: the folder's files.
        served: what is served.
        draining: models that wait for their last session to end.
        loading: the name of the model that is being loaded.
        failed: why each model's last load failed, by name.
    """
    entries = {}
    for each in located:
        reason = failed.get(each.name, "")
        state = "LOADING" if each.name == loading else "UNAVAILABLE" if reason else ""
        entries[each.name, each.version] = IndexEntry(each.name, each.version, state, reason)
    for model in draining:
        key = (model.file.name, model.file.version)
        entries[key] = IndexEntry(*key, "UNLOADING", f"{model.batcher.live} sessions are live on it")
    for model in served:
        key = (model.file.name, model.file.version)
        reason = failed.get(model.file.name, "")
        entries[key] = IndexEntry(
            *key, "READY", f"still served; a newer load failed: {reason}" if reason else ""
        )
    return [entries[key] for key in sorted(entries, key=lambda key: (key[0], int(key[1])))]


_log = structlog.get_logger(__name__)


class ModelLifecycle:
    """One thread that loads, swaps and unloads models, one after another, so the table matches the folder.

    A session stays on the version that it started on. A swapped-out version is released with its last session.
    """

    def __init__(self, settings: Settings, sessions: SessionTable, changes: ModelChanges) -> None:
        """`changes` changes the table of models; `sessions` holds the live sessions."""
        self._settings = settings
        self._sessions = sessions
        self._changes = changes
        self._poll = ModelPoll(settings.models, self._locate, changes)
        self._pending: set[Future[None]] = set()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="model-control", daemon=True)

    def load_folder(self) -> None:
        """Load what the folder has, as polling does. Before `start`.

        Raises:
            ModelLoadError: there is no folder that can be read.
        """
        self._locate()
        self._poll.look()

    # From any thread

    def start(self) -> None:
        """Begin to take requests and, if the settings ask for it, to poll the folder."""
        self._thread.start()

    def load(self, name: str) -> Future[None]:
        """Load what the folder now has of `name`; the future is done when new sessions get it.

        The future raises ModelControlOff, ModelNotFound or ModelLoadFailed; then the versions served before stay.
        """
        return self._ask(name, lambda done: self._load(name, done))

    def unload(self, name: str) -> Future[None]:
        """Unload `name`; the future is done when its memory is free, after the grace at the latest.

        The future raises ModelControlOff, ModelNotFound, or ModelInUse if live sessions are not waited for.
        """
        return self._ask(name, lambda done: self._changes.unload(name, lambda: self._settle(done)))

    def index(self) -> list[IndexEntry]:
        """Every version in the folder or in use; without model control, what is served.

        Raises:
            ModelLoadFailed: the folder cannot be read.
        """
        located: list[Located] = []
        if self._settings.model_control != "none":
            try:
                located, _ = self._locate()
            except ModelLoadError as error:
                raise ModelLoadFailed(str(error)) from error
        changes = self._changes
        failed = {name: reason for name, (_, reason) in changes.failed.copy().items()}
        return make_index(located, changes.models, changes.draining, loading=changes.loading, failed=failed)

    def running(self) -> list[LoadedModel]:
        """Every model with an engine: served ones, and those that wait for their last sessions."""
        return [*self._changes.models, *self._changes.draining]

    def halt(self) -> None:
        """Finish the current load and fail all later requests."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
        for future in list(self._pending):
            self._settle(future, ServerDraining("this server has shut down"))

    def stop(self) -> None:
        """Stop every engine. Sessions have been ended, and `halt` was called."""
        for model in self.running():
            model.release()

    def _locate(self) -> tuple[list[Located], list[ModelLoadError]]:
        return locate(self._settings.models, follow_links=self._settings.follow_links)

    def _ask(self, name: str, job: Callable[[Future[None]], None]) -> Future[None]:
        future: Future[None] = Future()
        if (mode := self._settings.model_control) != "explicit":
            kind = "off" if mode == "none" else "by polling the folder"
            future.set_exception(
                ModelControlOff(
                    f"explicit model load / unload is not allowed: this server's model control is {kind}",
                    model=name,
                    model_control=mode,
                )
            )
        elif self._sessions.draining:
            future.set_exception(ServerDraining("this server is shutting down and loads and unloads nothing"))
        else:
            self._pending.add(future)
            self._jobs.put(lambda: self._run(future, job))
        return future

    # On the control's thread

    def _work(self) -> None:
        polls = self._settings.model_control == "poll"
        due_s = time.monotonic() + self._settings.model_poll_s
        while True:
            pause_s = self._changes.draining.pause_s
            if polls:
                pause_s = min(pause_s, max(0.0, due_s - time.monotonic()))
            try:
                job = self._jobs.get(timeout=min(pause_s, threading.TIMEOUT_MAX))
            except queue.Empty:
                pass
            else:
                if job is None:
                    return
                job()
            _try(self._release)
            if polls and time.monotonic() >= due_s:
                _try(self._poll.look)
                due_s = time.monotonic() + self._settings.model_poll_s

    def _release(self) -> None:
        if self._changes.draining.tick():
            refreeze_heap()

    def _run(self, future: Future[None], job: Callable[[Future[None]], None]) -> None:
        try:
            job(future)
        except ServiceError as error:
            self._settle(future, error)
        except Exception as error:  # a bug fails one request, not the thread
            _log.error("model control failed", exc_info=error)
            self._settle(future, ModelLoadFailed(f"a fault of the server: {error!r}"))

    def _settle(self, future: Future[None], error: ServiceError | None = None) -> None:
        self._pending.discard(future)
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def _load(self, name: str, done: Future[None]) -> None:
        try:
            located, errors = self._locate()
        except ModelLoadError as error:
            raise ModelLoadFailed(str(error), model=name) from error
        if mine := concerning(self._settings.models, name, errors):
            raise ModelLoadFailed("\n".join(map(str, mine)), model=name)
        files = [each for each in located if each.name == name]
        if not files:
            raise ModelNotFound(f"no model named {shown(name)} in the folder of models", model=name)
        self._changes.sync_with_folder(name, files)
        self._settle(done)


def _try(what: Callable[[], None]) -> None:
    try:
        what()
    except Exception as error:  # a bug: the next pass may succeed
        _log.error("model control failed", exc_info=error)
