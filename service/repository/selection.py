"""Which of a folder's files are served: all of them, the latest of each model, or those that are named."""

from __future__ import annotations

from collections.abc import Iterable

from streamcell.service.load_errors import ModelLoadError, RepositoryError
from streamcell.service.settings import Settings

from .locate import Located, locate
from .model_file import ModelFile, open_all


def at_start(settings: Settings) -> list[ModelFile]:
    """What the server starts with.

    Raises:
        ModelLoadError: there is no folder; or, without model control, no model; or one that is named is not there.
        RepositoryError: one or more files cannot be served; the report names all of them.
    """
    located, errors = locate(settings.models, follow_links=settings.follow_links)
    if settings.model_control == "explicit" and "*" not in settings.load_model:
        missing = set(settings.load_model) - {each.name for each in located}
        located = [each for each in located if each.name in settings.load_model]
        errors = [
            ModelLoadError(f"load_model: no such model in {settings.models}: {name!r}")
            for name in sorted(missing)
        ]
        if errors:
            raise RepositoryError(settings.models, errors)
    files = open_all(
        settings.models,
        chosen(located, latest_only=settings.latest_only),
        errors,
        follow_links=settings.follow_links,
    )
    if not files and settings.model_control == "none":
        raise ModelLoadError(
            f"no model in {settings.models}: expected NAME.onnx, NAME/<version>/model.onnx or a pipeline's NAME.toml"
        )
    return files


def chosen(located: Iterable[Located], *, latest_only: bool) -> list[Located]:
    """Those to serve, by name, versions in numerical order."""
    ordered = sorted(located, key=lambda each: (each.name, int(each.version)))
    if not latest_only:
        return ordered
    newest = {each.name: int(each.version) for each in ordered}
    return [each for each in ordered if int(each.version) == newest[each.name]]


def by_name(located: Iterable[Located]) -> dict[str, list[Located]]:
    """`located`, grouped."""
    groups: dict[str, list[Located]] = {}
    for each in located:
        groups.setdefault(each.name, []).append(each)
    return groups
