"""Ids of sessions, and the hashes of their tokens."""

from __future__ import annotations

import hashlib

from streamcell.service.errors import SessionNotFound, shown


def hash_token(token: bytes) -> bytes:
    """The hash of a token, which is all that the server keeps of it."""
    return hashlib.sha256(token).digest()


def not_found(session_id: str) -> SessionNotFound:
    return SessionNotFound(f"no live session {shown(session_id)}", session_id=session_id)
