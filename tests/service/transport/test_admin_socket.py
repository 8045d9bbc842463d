"""Nobody but the server's user can open the operators' socket, from its first moment on."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from streamcell.service.settings import Settings
from streamcell.service.transport.grpc_server import Transport
from streamcell.service.transport.threaded_lane import ThreadedLane


def test_the_socket_is_made_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "admin"
    modes: list[int] = []
    chmod = os.chmod

    def noted(path: str, mode: int) -> None:
        modes.append(stat.S_IMODE(os.stat(path).st_mode))
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", noted)
    before = os.umask(0)
    try:
        settings = Settings(models=tmp_path, admin=f"unix:{path}")
        transport = Transport(settings, {}, ThreadedLane(), lambda error: None, admin=True)
        assert os.umask(0) == 0
        modes.append(stat.S_IMODE(os.stat(path).st_mode))
    finally:
        os.umask(before)
    assert [mode & 0o077 for mode in modes] == [0] * len(modes)
    assert modes[-1] == 0o600
    transport._grpc.stop(None)
