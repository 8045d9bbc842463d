"""What a folder of models holds beside what is served of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from streamcell.service.repository.locate import Located

from .loaded_model import LoadedModel


@dataclass(frozen=True)
class IndexEntry:
    """One version of a model.

    Attributes:
        state: "READY", "LOADING", "UNLOADING", "UNAVAILABLE", or "" for one that was not asked for.
        reason: why it is in that state, where there is something to say.
    """

    name: str
    version: str
    state: str
    reason: str = ""


def make_index(
    located: Iterable[Located],
    served: Iterable[LoadedModel],
    retired: Iterable[LoadedModel],
    *,
    loading: str | None,
    failed: Mapping[str, str],
) -> list[IndexEntry]:
    """One entry a version, by name, the newest version last.

    Args:
        located: the folder's files.
        served: what is served.
        retired: what waits for its last sessions to end.
        loading: the name of the model that is being loaded.
        failed: why each model's last load failed, by name.
    """
    entries = {}
    for each in located:
        reason = failed.get(each.name, "")
        state = "LOADING" if each.name == loading else "UNAVAILABLE" if reason else ""
        entries[each.name, each.version] = IndexEntry(each.name, each.version, state, reason)
    for model in retired:
        key = (model.file.name, model.file.version)
        entries[key] = IndexEntry(*key, "UNLOADING", f"{model.batcher.live} sessions are live on it")
    for model in served:
        key = (model.file.name, model.file.version)
        reason = failed.get(model.file.name, "")
        entries[key] = IndexEntry(
            *key, "READY", f"still served; a newer load failed: {reason}" if reason else ""
        )
    return [entries[key] for key in sorted(entries, key=lambda key: (key[0], int(key[1])))]
