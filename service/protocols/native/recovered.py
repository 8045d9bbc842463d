"""Brings back the sessions that an earlier process has left in a model's journal."""

from __future__ import annotations

import time

import structlog
from google.protobuf.message import DecodeError

from streamcell.proto import pb
from streamcell.service.durability.found import Found
from streamcell.service.errors import ServiceError
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.protocols.common.call_context import CallContext

from .openings import check_values
from .resumable import Resumable

_log = structlog.get_logger(__name__)


def recover(model: LoadedModel, context: CallContext[LoadedModel]) -> None:
    """Enter the sessions of `model` that an earlier process has left, detached: their clients resume them.

    From then on they are in this process's journal. One that cannot be entered is lost, and the log says why.
    """
    journal = model.journal
    if journal is None:
        return
    began_s = time.perf_counter()
    moved = []
    for found, file in journal.recover():
        try:
            moved.append((found, file, _enter(found, model, context)))
        except (ServiceError, DecodeError) as error:
            _log.error("session in a journal is lost", session=found.session.hex(), reason=str(error))
    journal.adopt(moved)
    model.metrics.recovery_s = time.perf_counter() - began_s
    if moved:
        _log.info(
            "sessions recovered",
            model=model.file.name,
            version=model.file.version,
            sessions=len(moved),
            seconds=round(model.metrics.recovery_s, 3),
        )


def _enter(found: Found, model: LoadedModel, context: CallContext[LoadedModel]) -> int:
    """Enter one session; its slot."""
    request = pb.OpenSession.FromString(found.opening)
    values = check_values(request, model, context)
    return Resumable.recovered(found, request, model, values, context).live.session.slot
