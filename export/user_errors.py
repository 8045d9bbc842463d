"""Exceptions of a user's own code: what failed, the last line of that code, and no traceback of ours."""

from __future__ import annotations

import linecache
import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch

from .errors import ExportError, UserCodeError

_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).resolve().parent)
_PATHS = sysconfig.get_paths()
_PACKAGES, _STANDARD = (_PATHS["purelib"], _PATHS["platlib"]), _PATHS["stdlib"]
_MOST_TEXT, _MOST_LINE = 600, 120


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Report every exception of the body as the user's; our own pass unchanged.

    Args:
        what: begins the message, as "mine.py does not run".

    Raises:
        UserCodeError: the body raised something.
    """
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        raise UserCodeError(f"{what}: {told(error)}") from error


def told(error: BaseException) -> str:
    """An exception, with the last line of the user's code: `cell.py:12, in forward, 'h = …': TypeError: …`."""
    text = str(error).strip()
    if isinstance(error, SyntaxError) and error.filename:
        place: str | None = f"{_short(error.filename)}:{error.lineno}, {(error.text or '').strip()!r}"
        text = error.msg
    else:
        place = last_line(error.__traceback__)
    if len(text) > _MOST_TEXT:
        text = f"{text[:_MOST_TEXT]} …"
    complaint = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return complaint if place is None else f"{place}: {complaint}"


def last_line(trace: TracebackType | None) -> str | None:
    """The last frame that is neither torch's nor the exporter's, rather in the user's files than in a package."""
    frames = [
        frame
        for frame in traceback.extract_tb(trace)
        if not _in(frame.filename, _TORCH, _OURS) and not frame.filename.startswith("<")
    ]
    frames = [
        frame for frame in frames if _in(frame.filename, *_PACKAGES) or not _in(frame.filename, _STANDARD)
    ]
    if not frames:
        return None
    own = [frame for frame in frames if not _in(frame.filename, *_PACKAGES)]
    frame = (own or frames)[-1]
    line = linecache.getline(frame.filename, frame.lineno or 0).strip()
    line = line if len(line) <= _MOST_LINE else f"{line[:_MOST_LINE]} …"
    return f"{_short(frame.filename)}:{frame.lineno}, in {frame.name}, {line!r}"


def _in(file: str, *folders: str) -> bool:
    paths = {os.path.abspath(file), os.path.realpath(file)}
    return any(path.startswith(os.path.join(folder, "")) for path in paths for folder in folders)


def _short(file: str) -> str:
    """The path from here, if that is no way up."""
    here = os.path.relpath(file)
    return file if here.startswith("..") else here
