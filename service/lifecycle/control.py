"""Loads and unloads models while the server serves: at a client's request, or as the folder of models changes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import structlog

from streamcell.service.engine.device import Device
from streamcell.service.errors import (
    ModelControlOff,
    ModelLoadFailed,
    ModelNotFound,
    ServerDraining,
    ServiceError,
    shown,
)
from streamcell.service.gc_tuning import settle_again
from streamcell.service.load_errors import ModelLoadError
from streamcell.service.metrics.server_metrics import ServerMetrics
from streamcell.service.repository.locate import Located, locate
from streamcell.service.sessions.table import SessionTable
from streamcell.service.settings import Settings

from .changes import ModelChanges
from .index import IndexEntry, make_index
from .loaded_model import LoadedModel
from .polling import ModelPoll
from .table import Models

_log = structlog.get_logger(__name__)

Served = Callable[[str, bool], None]


class ModelControl:
    """One thread that loads, swaps and unloads, one thing after another, so that the folder and the table agree.

    A session stays on the version that it started on. What is swapped out is let go with its last session.
    """

    def __init__(
        self,
        settings: Settings,
        device: Device,
        models: Models,
        sessions: SessionTable,
        metrics: ServerMetrics,
        served: Served = lambda name, served: None,
    ) -> None:
        """Make the control of `models`, which have been loaded.

        Args:
            settings: the server's.
            device: where models run.
            models: the table to change.
            sessions: whose sessions are on the models.
            metrics: where models report.
            served: told when a model begins or ceases to be served.
        """
        self._settings = settings
        self._sessions = sessions
        self._changes = ModelChanges(settings, device, models, sessions, metrics, served)
        self._poll = ModelPoll(self._locate, self._changes)
        self._pending: set[Future[None]] = set()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="model-control", daemon=True)

    # From any thread

    def start(self) -> None:
        """Begin to take requests and, where it is asked for, to look at the folder."""
        self._thread.start()

    def load(self, name: str) -> Future[None]:
        """Serve what the folder now has of `name`; done when new sessions get it.

        The future raises ModelControlOff, ModelNotFound or ModelLoadFailed; what was served before then still is.
        """
        return self._ask(name, lambda done: self._load(name, done))

    def unload(self, name: str) -> Future[None]:
        """Serve `name` no more; done when its memory is free, after the grace at the latest.

        The future raises ModelControlOff, ModelNotFound, or ModelInUse where live sessions are not waited for.
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
        return make_index(located, changes.models, changes.retired, loading=changes.loading, failed=failed)

    def running(self) -> list[LoadedModel]:
        """Every model that has an engine: those served, and those whose last sessions are still live."""
        return [*self._changes.models, *self._changes.retired]

    def halt(self) -> None:
        """Finish the load at hand and fail what is asked for beyond it."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
        for future in list(self._pending):
            self._settle(future, ServerDraining("this server has shut down"))

    def stop(self) -> None:
        """Stop every engine. Sessions have been ended, and `halt` was called."""
        for model in self.running():
            model.let_go()

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
            pause_s = self._changes.retired.pause_s
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
            _try(self._let_go)
            if polls and time.monotonic() >= due_s:
                _try(self._poll.look)
                due_s = time.monotonic() + self._settings.model_poll_s

    def _let_go(self) -> None:
        if self._changes.retired.tick():
            settle_again()

    def _run(self, future: Future[None], job: Callable[[Future[None]], None]) -> None:
        try:
            job(future)
        except ServiceError as error:
            self._settle(future, error)
        except Exception as error:  # a fault of ours fails one request, not the thread
            _log.error("model control failed", exc_info=error)
            self._settle(future, ModelLoadFailed(f"a fault of the server's own: {error!r}"))

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
        for misplaced in errors:
            if misplaced.path is not None and self._settings.models / name in misplaced.path.parents:
                raise ModelLoadFailed(str(misplaced), model=name)
        mine = [each for each in located if each.name == name]
        if not mine:
            raise ModelNotFound(f"no model named {shown(name)} in the folder of models", model=name)
        self._changes.agree(name, mine)
        self._settle(done)


def _try(what: Callable[[], None]) -> None:
    try:
        what()
    except Exception as error:  # a fault of ours: the next time may do better
        _log.error("model control failed", exc_info=error)
