"""The table of the models that are being served."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from streamcell.service.errors import ModelNotFound, ModelUnloading, VersionNotFound, shown
from streamcell.service.sessions.model import Model

M = TypeVar("M", bound=Model)


class Models(Generic[M]):
    """Every served model, by name and version. Any thread may read it while one thread changes it."""

    def __init__(self, models: Iterable[M]) -> None:
        # Replaced, never changed, so that readers need no lock.
        self._models: dict[str, dict[str, M]] = {}
        self._unloading: frozenset[str] = frozenset()
        by_name: dict[str, list[M]] = {}
        for model in models:
            by_name.setdefault(model.file.name, []).append(model)
        for name, versions in by_name.items():
            self.put(name, versions)

    def put(self, name: str, models: Iterable[M]) -> None:
        """Serve `models` as the versions of `name` from now on; none takes the name off."""
        versions = {
            model.file.version: model for model in sorted(models, key=lambda model: int(model.file.version))
        }
        others = {other: held for other, held in self._models.items() if other != name}
        self._models = dict(sorted((others | ({name: versions} if versions else {})).items()))

    def versions(self, name: str) -> Mapping[str, M]:
        """The versions of `name` that are served, the newest last."""
        return self._models.get(name, {})

    def unloading(self, name: str, unloading: bool) -> None:
        """Note whether `name`, if it is not served, is being unloaded."""
        self._unloading = self._unloading | {name} if unloading else self._unloading - {name}

    def __iter__(self) -> Iterator[M]:
        for versions in self._models.values():
            yield from versions.values()

    def find(self, name: str, version: str = "") -> M:
        """The model of that name; the newest version if none is named.

        Raises:
            ModelNotFound: no model has that name.
            ModelUnloading: the model is being unloaded.
            VersionNotFound: the model has no such version.
        """
        versions = self._models.get(name)
        if versions is None:
            if name in self._unloading:
                raise ModelUnloading(
                    f"model {shown(name)} is being unloaded and takes no new sessions", model=name
                )
            raise ModelNotFound(
                # Triton's words, which clients look for
                f"Request for unknown model: {shown(name)} is not found; this server has: "
                f"{', '.join(self._models) or 'none'}",
                model=name,
            )
        if not version:
            return next(reversed(versions.values()))
        if version not in versions:
            raise VersionNotFound(
                f"model {shown(name)} has no version {shown(version)}; it has: {', '.join(versions)}",
                model=name,
                version=version,
            )
        return versions[version]
