"""Brings back the sessions that an earlier process has left in a model's journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import structlog
from google.protobuf.message import DecodeError

from streamcell.proto import pb
from streamcell.service.durability.found import Found
from streamcell.service.durability.frame_entry import Ints
from streamcell.service.durability.journal import Journal
from streamcell.service.durability.layout import SESSION
from streamcell.service.durability.mapped_file import MappedFile
from streamcell.service.errors import ServiceError
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.protocols.common.scopes import Scopes

from .openings import check_values
from .resumable_frames import ResumableFrames, tenant_of
from .resumable_openings import recovered

_log = structlog.get_logger(__name__)


# Enters what an earlier process has left, in a model; returns its slot.
Enter = Callable[[Found, LoadedModel], int]


def recover(
    model: LoadedModel, scopes: Scopes[LoadedModel], others: Mapping[int, Enter] | None = None
) -> None:
    """Enter the sessions of `model` from an earlier process, detached: their clients resume them.

    From then on they are in this process's journal. One that cannot be entered is lost, and the log says why. `others`
    enter, by their kind, sessions of another protocol.
    """
    enter: dict[int, Enter] = {SESSION: partial(_enter, scopes=scopes), **(others or {})}
    journal = model.journal
    if journal is None:
        return
    began_s = time.perf_counter()
    moved = []
    for found, file in journal.recover():
        try:
            moved.append((found, file, enter[found.kind](found, model)))
        except (ServiceError, DecodeError, KeyError) as error:
            _log.error("session in a journal is lost", session=found.session.hex(), reason=str(error))
    members = _recover_streams(journal, model, scopes)
    journal.adopt(moved, members)
    model.engine.pool.recovered()
    model.metrics.recovery_s = time.perf_counter() - began_s
    if moved:
        _log.info(
            "sessions recovered",
            model=model.file.name,
            version=model.file.version,
            sessions=len(moved),
            seconds=round(model.metrics.recovery_s, 3),
        )


def _recover_streams(
    journal: Journal, model: LoadedModel, scopes: Scopes[LoadedModel]
) -> list[tuple[MappedFile, Ints, Ints]]:
    """Enter the streams of frames, their tenants' again; where the states of their members are and go."""
    members = []
    for found, file in journal.recover_streams():
        try:
            context = scopes.of_tenant(tenant_of(found))
            members.append((file, *ResumableFrames.recovered(found, model, context)))
        except (ServiceError, DecodeError, UnicodeDecodeError) as error:
            _log.error(
                "stream of frames in a journal is lost", session=found.session.hex(), reason=str(error)
            )
    return members


def _enter(found: Found, model: LoadedModel, scopes: Scopes[LoadedModel]) -> int:
    """Enter one session, its tenant's again; its slot."""
    request = pb.OpenSession.FromString(found.opening)
    context = scopes.of_tenant(request.model)
    values = check_values(request, model, context)
    return recovered(found, request, model, values, context).live.session.slot
