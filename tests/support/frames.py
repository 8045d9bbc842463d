"""Resumable streams of frames on the wire."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamcell.proto import pb

from .resumable import Owner, Raw


class Frames(Raw):
    """One `StreamFrames` call on a connection of its own."""

    _method = "StreamFrames"


class FrameOwner(Owner):
    """Who has a stream's token: makes its openings, each with the next attempt."""

    _request = pb.FrameRequest
    _open = pb.OpenFrames


def frame(*rows: tuple[int, float], **fields: Any) -> pb.FrameRequest:
    """One timestep of some members."""
    handles = np.array([handle for handle, _ in rows], "<u4").tobytes()
    x = np.array([value for _, value in rows], "<f4").tobytes()
    return pb.FrameRequest(handles=handles, steps=min(1, len(rows)), inputs=[x] if rows else [], **fields)


def full(value: float, *shape: int) -> Any:
    """An array of one number."""
    return np.full(shape, value, np.float32)
