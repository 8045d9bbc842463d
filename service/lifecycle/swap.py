"""The versions of a model as its files now are: those that have not changed are kept, the others loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streamcell.service.engine.device import Device
from streamcell.service.errors import ModelLoadFailed
from streamcell.service.load_errors import ModelLoadError
from streamcell.service.repository.locate import Located
from streamcell.service.repository.model_file import open_model
from streamcell.service.settings import Settings

from .loaded_model import LoadedModel, load


def load_changed(
    located: Sequence[Located],
    now: Mapping[str, LoadedModel],
    known: Mapping[str, LoadedModel],
    settings: Settings,
    device: Device,
) -> list[LoadedModel]:
    """What is to be served of one model, in the order of `located`.

    Args:
        located: its files.
        now: the versions that are served.
        known: the versions that still report, served or not; one that is loaded anew goes on with its metrics.
        settings: the server's.
        device: where it runs.

    Raises:
        ModelLoadFailed: a file cannot be served; what had been loaded by then has been let go.
    """
    new: list[LoadedModel] = []
    taken: list[LoadedModel] = []
    try:
        for each in located:
            have = now.get(each.version)
            if any(model.file.version == each.version for model in taken):
                raise ModelLoadError(f"model {each.name!r} version {each.version} is there twice", each.path)
            if have is not None and have.file.path == each.path and not have.file.changed:
                taken.append(have)
                continue
            old = known.get(each.version)
            file = open_model(
                each.path, each.name, each.version, None if settings.follow_links else settings.models
            )
            new.append(load(file, settings, device, old.metrics if old is not None else None))
            taken.append(new[-1])
            if file.changed:
                raise ModelLoadError("it was replaced while it was being read", each.path)
    except Exception as error:  # ONNX Runtime's errors share no base class
        for model in new:
            model.let_go()
        name = located[0].name
        raise ModelLoadFailed(f"model {name!r} was not loaded: {error}", model=name) from error
    return taken
