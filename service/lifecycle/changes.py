"""Changes the table of models: loads, swaps and unloads, one at a time, by request or as the folder changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from streamcell.service.control_errors import ModelInUse, ModelLoadFailed
from streamcell.service.engine.device import Device
from streamcell.service.errors import ModelNotFound, shown
from streamcell.service.gc_tuning import refreeze_heap
from streamcell.service.load_errors import ModelLoadError, load_failure
from streamcell.service.logs.audit import Audit
from streamcell.service.metrics.server_metrics import ServerMetrics
from streamcell.service.repository.locate import Located, Stamp, sidecar_path, stamp, stray_sidecars
from streamcell.service.repository.model_file import open_model
from streamcell.service.repository.selection import by_name, chosen, trusted
from streamcell.service.repository.signed import signature_path
from streamcell.service.sessions.table import SessionTable
from streamcell.service.settings import Settings

from .draining import DrainingModels
from .loaded_model import LoadedModel, load
from .table import Models

_log = structlog.get_logger(__name__)


class ModelChanges:
    """Only the model control thread calls it; any thread may read `draining`, `loading` and `failed`.

    Attributes:
        models: what is served.
        draining: the models that take no new sessions and wait for their last one to end.
        loading: the name of the model that is being loaded, or None.
        failed: for each model whose last load failed, its files at that time and the reason.
    """

    def __init__(
        self,
        settings: Settings,
        device: Device,
        models: Models[LoadedModel],
        sessions: SessionTable,
        metrics: ServerMetrics,
        served: Callable[[str, bool], None],
        recover: Callable[[LoadedModel], None] = lambda model: None,
        audit: Audit | None = None,
    ) -> None:
        """Start reporting the metrics of `models`, which are loaded.

        Args:
            settings: the server's.
            device: where models run.
            models: the table to change.
            sessions: whose sessions are on the models.
            metrics: where models report.
            served: called when a model becomes available or unavailable.
            recover: called for each model before it is served, to bring back sessions that an earlier process has left.
            audit: gets a line for each load and unload.
        """
        self.models = models
        self.draining = DrainingModels(sessions, self._release)
        self.loading: str | None = None
        self.failed: dict[str, tuple[Stamp, str]] = {}
        self._settings = settings
        self._device = device
        self._sessions = sessions
        self._metrics = metrics
        self._served = served
        self._recover = recover
        self._audit = audit
        for model in models:
            self._serve(model)

    def sync_with_folder(self, name: str, located: list[Located]) -> None:
        """Load, swap or unload versions of `name` until they match its files.

        If a file cannot be served and clients ask for loads, nothing changes. If the folder is polled, what can be
        loaded is served, and nothing is unloaded.

        Raises:
            ModelLoadFailed: one or more files cannot be served.
        """
        now = self.models.versions(name)
        files = chosen(located, latest_only=self._settings.latest_only)
        seen = stamp_of(located)
        self.loading = name
        try:
            new, errors = load_changed(files, now, self._known(name), self._settings, self._device)
        finally:
            self.loading = None
        self.failed.pop(name, None)
        if errors:
            if self._settings.model_control == "explicit":
                release_new(new, now)
                new = list(now.values())
            else:
                new = with_kept(new, now)
        self._serve_versions(name, new)
        if errors:
            raise self._failed(name, seen, errors)

    def _failed(self, name: str, seen: Stamp, errors: list[ModelLoadError]) -> ModelLoadFailed:
        """Note that files of `name` cannot be served; the error to raise."""
        reason = str(errors[0]) if len(errors) == 1 else "\n".join(["", *(f"- {each}" for each in errors)])
        failed = ModelLoadFailed(f"model {name!r} was not loaded: {reason}", model=name)
        self.failed[name] = (seen, str(failed))
        self._metrics.load_failed(name)
        if self._audit is not None:
            self._audit.tell("load_failed", model=name, reason=reason)
        _log.error("model not loaded", model=name, reason=reason, served=list(self.models.versions(name)))
        return failed

    def _serve_versions(self, name: str, new: list[LoadedModel]) -> None:
        now = self.models.versions(name)
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
                self.draining.add(model)
        refreeze_heap()

    def _known(self, name: str) -> dict[str, LoadedModel]:
        """The versions of `name` that still report metrics, by version."""
        known = {model.file.version: model for model in self.draining if model.file.name == name}
        return {**known, **self.models.versions(name)}

    def unload(self, name: str, done: Callable[[], None] = lambda: None) -> None:
        """Stop serving `name`; `done` is called once its memory is free, that of swapped-out versions included.

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
            self.draining.add(model)
        self.draining.unload(name, grace_s, gone)

    def _claim(self, name: str) -> None:
        """Close `name` to new sessions, or raise ModelInUse if it has some, on swapped-out versions too.

        Unary calls do not count: they end by themselves, and soon.
        """
        served = self.models.versions(name).values()
        versions = [*served, *(model for model in self.draining if model.file.name == name)]

        def check() -> None:
            count = sum(len(self._sessions.on(model)) for model in versions)
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
            check()  # a session may have been opened in between
        except ModelInUse:
            for model in served:
                model.batcher.close(closed=False)
            raise

    def _serve(self, model: LoadedModel) -> None:
        """Report `model`'s figures."""
        metrics = model.metrics
        metrics.attach(model.pool)
        metrics.sessions = lambda: self._sessions.counts(metrics)
        metrics.queued = lambda: self._sessions.queued(metrics)
        self._metrics.add(metrics)
        self._tell("loaded", model)
        self._recover(model)

    def _tell(self, event: str, model: LoadedModel) -> None:
        if self._audit is not None:
            file = model.file
            signed = True if file.signed is not None else None
            self._audit.tell(event, model=file.name, version=file.version, sha256=file.sha256, signed=signed)

    def _release(self, model: LoadedModel) -> None:
        model.release()
        self._tell("unloaded", model)
        if not model.metrics.pools:
            self._metrics.remove(model.metrics)
        _log.info("model released", model=model.file.name, version=model.file.version)


def stamp_of(located: Iterable[Located]) -> Stamp:
    """The stamps of all files that can decide whether a model loads.

    These are its own files, and those that belong to no other model, because they may be its external data. So
    adding or removing one model does not reload another.
    """
    paths: list[Path] = []
    for each in located:
        own = (each.path, *each.stages)
        paths += (*own, sidecar_path(each.path), signature_path(each.path))
        folders = sorted({path.parent for path in own if path.parent.is_dir()})
        paths += sorted(
            path
            for folder in folders
            for path in folder.iterdir()
            if path.suffix not in (".onnx", ".toml", ".sig") and not path.is_dir()
        )
    return stamp(paths)


def load_changed(
    located: Sequence[Located],
    now: Mapping[str, LoadedModel],
    known: Mapping[str, LoadedModel],
    settings: Settings,
    device: Device,
) -> tuple[list[LoadedModel], list[ModelLoadError]]:
    """The versions of one model that can be served, in the order of `located`, and why the others cannot.

    Args:
        located: its files.
        now: the versions that are served.
        known: the versions that still report metrics, served or not; a reloaded version keeps its metrics.
        settings: the server's.
        device: where it runs.
    """
    taken: list[LoadedModel] = []
    errors: list[ModelLoadError] = []
    for each in located:
        have = now.get(each.version)
        try:
            if any(model.file.version == each.version for model in taken):
                raise ModelLoadError(f"model {each.name!r} version {each.version} exists twice", each.path)
            if have is not None and have.file.path == each.path and not have.file.changed:
                taken.append(have)
            else:
                taken.append(_load_new(each, known.get(each.version), settings, device))
        except Exception as error:  # ONNX Runtime's errors share no base class
            errors.append(load_failure(error, each.path))
    return taken, errors


def _load_new(each: Located, old: LoadedModel | None, settings: Settings, device: Device) -> LoadedModel:
    """Load a file; `old` is the version that it replaces."""
    root = None if settings.follow_links else settings.models
    file = open_model(each.path, each.name, each.version, root, trusted(settings))
    model = load(file, settings, device, old.metrics if old is not None else None)
    if file.changed:
        model.release()
        raise ModelLoadError("it was replaced while it was being read", each.path)
    return model


def release_new(new: Iterable[LoadedModel], now: Mapping[str, LoadedModel]) -> None:
    """Release those of `new` that are not served `now`."""
    for model in new:
        if model is not now.get(model.file.version):
            model.release()


def with_kept(new: Iterable[LoadedModel], now: Mapping[str, LoadedModel]) -> list[LoadedModel]:
    """What is served `now`, with the versions of `new` added or replaced, in numerical order."""
    versions = {**now, **{model.file.version: model for model in new}}
    return [versions[version] for version in sorted(versions, key=int)]


class ModelPoll:
    """Compares a folder with what is served, each time it is called. For the model control thread."""

    def __init__(
        self,
        models_dir: Path,
        locate: Callable[[], tuple[list[Located], list[ModelLoadError]]],
        changes: ModelChanges,
    ) -> None:
        """`locate` says what is in the folder."""
        self._models_dir = models_dir
        self._locate = locate
        self._changes = changes
        self._missing: set[str] = set()
        self._complaints: tuple[str, ...] = ()

    def look(self) -> None:
        """Load and unload until what is served matches the folder, as far as possible."""
        try:
            located, errors = self._locate()
            errors += stray_sidecars(self._models_dir, located)
        except ModelLoadError as error:
            self._complain((str(error),))
            return
        complaints = [str(error) for error in errors]
        groups = by_name(located)
        for name, files in groups.items():
            try:
                failed = self._changes.failed.get(name)
                if failed is None or failed[0] != stamp_of(files):
                    with suppress(ModelLoadFailed):  # noted and logged where it is raised
                        self._changes.sync_with_folder(name, files)
            except Exception as error:  # one broken model must not hold up the others
                complaints.append(str(load_failure(error, files[0].path)))
        missing = {model.file.name for model in self._changes.models} - groups.keys()
        # Replacing a file may remove it for a moment: look twice before unloading.
        for name in sorted(missing & self._missing):
            try:
                self._changes.unload(name)
            except ModelInUse as error:  # tried again at the next look
                complaints.append(f"its file is gone, but it stays: {error}")
        self._missing = missing
        for name in self._changes.failed.keys() - groups.keys():
            del self._changes.failed[name]
        self._complain(tuple(complaints))

    def _complain(self, complaints: tuple[str, ...]) -> None:
        """Log what is wrong in the folder, once."""
        for complaint in complaints:
            if complaint not in self._complaints:
                _log.warning("folder of models", reason=complaint)
        self._complaints = complaints
