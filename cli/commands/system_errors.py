"""Errors of the operating system as lines for people: the file, what is wrong with it, and what to do."""

from __future__ import annotations

import errno

_WAYS_ON = {
    errno.ENOENT: "see the path's spelling, and that its folder is there",
    errno.EACCES: "this user may not: see the rights, or name another place",
    errno.EPERM: "this user may not: see the rights, or name another place",
    errno.EROFS: "name a place that can be written to",
    errno.EEXIST: "something else has that name: name another place",
    errno.ENOTDIR: "a part of the path is a file: name a folder",
    errno.EISDIR: "it is a folder: name a file",
    errno.ENOSPC: "free some space, or name another place",
}


def cannot_open(error: OSError, otherwise: object = "") -> str:
    """The error's file, or `otherwise`, with what is wrong and what to do."""
    way_on = _WAYS_ON.get(error.errno or 0, "")
    told = f"{error.filename or otherwise}: {error.strerror or error}"
    return f"{told}: {way_on}" if way_on else told
