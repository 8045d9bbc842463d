"""The errors of snapshots, forks and restores."""

from __future__ import annotations

import grpc

from streamcell.service.errors import InvalidArgument, ServiceError


class SnapshotInvalid(InvalidArgument):
    """Bytes that are no snapshot, are damaged, or were not signed with this server's key."""

    reason = "SNAPSHOT_INVALID"


class SnapshotMismatch(ServiceError):
    """A whole snapshot that belongs to another model, or to another kind of session."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "SNAPSHOT_MISMATCH"


class NotResumable(ServiceError):
    """A session that ends with its stream cannot be copied."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOT_RESUMABLE"
