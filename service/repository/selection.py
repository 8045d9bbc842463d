"""Which of a folder's files are served: all of them, the latest of each model, or those that are named."""

from __future__ import annotations

from collections.abc import Iterable

from streamcell.service.load_errors import ModelLoadError
from streamcell.service.settings import Settings

from .locate import Located, concerning, locate, stray_sidecars
from .model_file import Found, open_all
from .sidecar import did_you_mean
from .signed import TrustedKeys


def at_start(settings: Settings) -> Found:
    """The models that the server starts with, unless it polls.

    Raises:
        ModelLoadError: there is no folder; or, without model control, no model.
    """
    located, errors = locate(settings.models, follow_links=settings.follow_links)
    notes = stray_sidecars(settings.models, located)
    if settings.model_control == "explicit" and "*" not in settings.load_model:
        names = {each.name for each in located}
        located = [each for each in located if each.name in settings.load_model]
        errors = [each for name in settings.load_model for each in concerning(settings.models, name, errors)]
        named = {each.path.relative_to(settings.models).parts[0] for each in errors if each.path is not None}
        errors += [
            ModelLoadError(
                f"load_model: no such model in {settings.models}: {name!r}{did_you_mean(name, names)}"
            )
            for name in sorted(set(settings.load_model) - names)
            if not named & {name, f"{name}.onnx"}
        ]
    found = open_all(
        chosen(located, latest_only=settings.latest_only),
        errors,
        notes,
        root=None if settings.follow_links else settings.models,
        trust=trusted(settings),
    )
    if not (found.files or found.errors) and settings.model_control == "none":
        raise ModelLoadError(
            f"no model in {settings.models}: expected NAME.onnx, NAME/<version>/model.onnx or a pipeline's NAME.toml"
        )
    return found


def trusted(settings: Settings) -> TrustedKeys | None:
    """The keys, one of which must have signed a model, if the settings demand it; read again for each look at models.

    Raises:
        ModelLoadError: the file of keys cannot be used.
    """
    if settings.require_signature is None:
        return None
    return TrustedKeys.read(settings.require_signature)


def chosen(located: Iterable[Located], *, latest_only: bool) -> list[Located]:
    """The files to serve, by name, versions in numerical order."""
    # If a sidecar's name is another file's own name, that file comes first.
    ordered = sorted(located, key=lambda each: (each.name, int(each.version), each.renamed))
    if not latest_only:
        return ordered
    newest = {each.name: int(each.version) for each in ordered}
    return [each for each in ordered if int(each.version) == newest[each.name]]


def by_name(located: Iterable[Located]) -> dict[str, list[Located]]:
    """Group `located`."""
    groups: dict[str, list[Located]] = {}
    for each in located:
        groups.setdefault(each.name, []).append(each)
    return groups
