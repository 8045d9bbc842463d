"""What changes in the table of models: loads, swaps and unloadings, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from streamcell.service.engine.device import Device
from streamcell.service.errors import ModelInUse, ModelLoadFailed, ModelNotFound, shown
from streamcell.service.gc_tuning import settle_again
from streamcell.service.metrics.server_metrics import ServerMetrics
from streamcell.service.repository.locate import Located, Stamp, sidecar_path, stamp
from streamcell.service.repository.selection import chosen
from streamcell.service.sessions.table import SessionTable
from streamcell.service.settings import Settings

from .loaded_model import LoadedModel
from .retiring import Retired
from .swap import load_changed
from .table import Models

_log = structlog.get_logger(__name__)


class ModelChanges:
    """For the model control's thread; `retired`, `loading` and `failed` may be read by any.

    Attributes:
        models: what is served.
        retired: what is served no more and waits for its last sessions to end.
        loading: the name of the model that is being loaded, or None.
        failed: of each model whose last load failed, its files then, and why.
    """

    def __init__(
        self,
        settings: Settings,
        device: Device,
        models: Models,
        sessions: SessionTable,
        metrics: ServerMetrics,
        served: Callable[[str, bool], None],
    ) -> None:
        """The arguments are the model control's."""
        self.models = models
        self.retired = Retired(sessions, self._let_go)
        self.loading: str | None = None
        self.failed: dict[str, tuple[Stamp, str]] = {}
        self._settings = settings
        self._device = device
        self._sessions = sessions
        self._metrics = metrics
        self._served = served
        for model in models:
            self._serve(model)

    def agree(self, name: str, located: list[Located]) -> None:
        """Make what is served of `name` agree with its files.

        Raises:
            ModelLoadFailed: one of them cannot be served; nothing has changed.
        """
        now = self.models.versions(name)
        files = chosen(located, latest_only=self._settings.latest_only)
        seen = stamp_of(located)
        self.loading = name
        try:
            new = load_changed(files, now, self._known(name), self._settings, self._device)
        except ModelLoadFailed as error:
            self.failed[name] = (seen, str(error))
            self._metrics.load_failed(name)
            _log.error("model not loaded", model=name, reason=str(error), served=list(now))
            raise
        finally:
            self.loading = None
        self.failed.pop(name, None)
        if new == list(now.values()):
            return
        for model in new:
            if model not in now.values():
                self._serve(model)
        self.models.put(name, new)
        self.models.unloading(name, False)
        self._served(name, True)
        for model in now.values():
            if model not in new:
                self.retired.add(model)
        settle_again()

    def _known(self, name: str) -> dict[str, LoadedModel]:
        """The versions of `name` that still report, by version."""
        known = {model.file.version: model for model in self.retired if model.file.name == name}
        return {**known, **self.models.versions(name)}

    def unload(self, name: str, done: Callable[[], None] = lambda: None) -> None:
        """Serve `name` no more; `done` is called once its memory is free, that of versions swapped out included.

        Raises:
            ModelNotFound: it is not served.
            ModelInUse: it has live sessions, and the settings say not to wait for them; nothing has changed.
        """
        versions = self.models.versions(name)
        if not versions:
            raise ModelNotFound(f"no model named {shown(name)} is loaded", model=name)
        if self._settings.unload == "refuse":
            self._claim(name)
        self.models.unloading(name, True)
        self.models.put(name, ())
        self._served(name, False)
        self.failed.pop(name, None)

        def gone() -> None:
            self.models.unloading(name, False)
            done()

        grace_s = self._settings.unload_grace_s
        _log.info("unloading", model=name, versions=list(versions), grace_s=grace_s)
        for model in versions.values():
            self.retired.add(model)
        self.retired.unload(name, grace_s, gone)

    def _claim(self, name: str) -> None:
        """Close `name` to new sessions, or raise ModelInUse where it has some, on versions swapped out too.

        Unary calls are no reason: they end by themselves, and soon.
        """
        served = self.models.versions(name).values()
        generations = [*served, *(model for model in self.retired if model.file.name == name)]

        def check() -> None:
            count = sum(len(self._sessions.on(model)) for model in generations)
            if count:
                raise ModelInUse(
                    f"model {name!r} has live sessions: {count} streams are open on it",
                    model=name,
                    streams=count,
                )

        check()
        for model in served:
            model.batcher.close()
        try:
            check()  # one may have been opened in between
        except ModelInUse:
            for model in served:
                model.batcher.reopen()
            raise

    def _serve(self, model: LoadedModel) -> None:
        """Report `model`'s figures."""
        metrics = model.metrics
        metrics.attach(model.pool)
        metrics.sessions = lambda: self._sessions.counts(metrics)
        metrics.queued = lambda: self._sessions.queued(metrics)
        self._metrics.add(metrics)

    def _let_go(self, model: LoadedModel) -> None:
        model.let_go()
        if not model.metrics.pools:
            self._metrics.remove(model.metrics)
        _log.info("model let go", model=model.file.name, version=model.file.version)


def stamp_of(located: Iterable[Located]) -> Stamp:
    """Of every file that may make the difference between a model that loads and one that does not.

    Beside its own files that is what no other model has for its own: it may be external data. So one model's coming
    or going has no other tried again.
    """
    paths: list[Path] = []
    for each in located:
        paths += (each.path, sidecar_path(each.path))
        paths += sorted(
            path
            for path in each.path.parent.iterdir()
            if path.suffix not in (".onnx", ".toml") and not path.is_dir()
        )
    return stamp(paths)
