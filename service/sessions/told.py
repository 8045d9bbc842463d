"""The interface by which the audit log hears of sessions."""

from __future__ import annotations

from streamcell.service.logs.audit import Audit, Fact

from .live import Live
from .model import Model


def tell(audit: Audit, event: str, live: Live[Model], **facts: Fact) -> None:
    """Report something that happened to a session."""
    session, file = live.session, live.model.file
    resumable = bool(session.token_hash) or None
    audit.tell(
        event,
        session=session.session_id,
        model=file.name,
        version=file.version,
        tenant=session.tenant,
        resumable=resumable,
        **facts,
    )
