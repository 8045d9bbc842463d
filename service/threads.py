"""Starts threads that a client's request needs: if the machine gives none, the request fails and nothing else does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc

from .errors import ServiceError


class NoThread(ServiceError):
    """The machine gives the server no thread for what a client asks for; nothing of it has begun."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "NO_THREAD"


def started(name: str, run: Callable[..., object], *args: object) -> threading.Thread:
    """A new daemon thread that calls `run(*args)`. Keep only what this returns: no one waits for one that never ran.

    Raises:
        NoThread: the machine gives no more threads.
    """
    thread = threading.Thread(target=run, args=args, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # Python's own, for a limit of the user, the container or the machine
        raise NoThread(
            f"the machine gives this server no thread for {name!r}: ask again later; if this lasts, raise the limit on "
            "processes (ulimit -u, pids.max of the container)",
            thread=name,
        ) from error
    return thread
