"""After a restart everything in the journal belongs to its tenant again, and nobody else reaches it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from streamcell.client.errors import StreamCellError
from streamcell.proto import pb
from streamcell.proto.inference import rpc as oip_rpc
from streamcell.service.access.identity import ANYONE
from streamcell.service.protocols.native import recovered
from streamcell.service.protocols.oip import scoped_infer
from streamcell.service.server import Server
from streamcell.service.settings import Settings
from tests.support.callers import channel_of
from tests.support.frames import FrameOwner, Frames, frame
from tests.support.infer_requests import request as infer
from tests.support.resumable import Owner, Raw, reason_of, sums
from tests.support.tokens import bearer, token_file

# `acme` has room for its sequence, and for the two members of its stream.
POLICY = "[tenants.acme]\nmax_sessions = 3\n[tenants.bank]\n"
SEEN = (AssertionError, grpc.RpcError, StreamCellError, StopIteration, pytest.fail.Exception)


class Place:
    """A server that is started again and again on the same journal."""

    def __init__(self, models: Path, folder: Path, **more: Any) -> None:
        tokens = token_file(
            folder / "tokens.toml", ("acme", "feed"), ("bank", "desk"), ("bank", "ops"), operators=("ops",)
        )
        (folder / "policy.toml").write_text(POLICY)
        self._settings: dict[str, Any] = {
            "models": models, "load_model": ("sum",), "model_control": "explicit", "port": 0, "metrics_port": 0,
            "durability": "process", "journal_dir": folder / "journal", "grace_s": 0, "max_sessions": 16,
            "token_file": tokens, "policy_file": folder / "policy.toml", **more,
        }  # fmt: skip

    @contextmanager
    def up(self) -> Iterator[str]:
        server = Server(Settings.load(**self._settings))
        server.start()
        try:
            yield f"127.0.0.1:{server.port}"
        finally:
            server.stop()
            # As if this process had ended: it still has the file locked.
            for path in self._settings["journal_dir"].rglob("*.journal"):
                left = path.read_bytes()
                path.unlink()
                path.write_bytes(left)


def step(target: str, subject: str, sequence: int | str = 42, **flags: bool) -> float:
    """A step of a sequence: the sum so far."""
    with channel_of(target, subject) as channel:
        stub: Any = oip_rpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(infer(np.ones((1, 1, 1), np.float32), "sum", sequence_id=sequence, **flags))
    return float(np.frombuffer(answer.raw_output_contents[0], "<f4")[0])


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return reason_of(raised.value)[0]


def frames(target: str, subject: str, *messages: Any) -> Frames:
    return Frames(target, *messages, metadata=bearer(f"token-of-{subject}"))


def everything_is_its_tenants_again(place: Place) -> None:
    stream = FrameOwner()
    with place.up() as target:
        for subject, steps in (("feed", 1), ("desk", 2), ("ops", 3)):
            found = [step(target, subject, sequence_start=at == 0) for at in range(steps)]
            assert found[-1] == steps
        begun = frames(target, "feed", stream.opening(first=1), frame((0, 5.0), (1, 7.0), open_sessions=2))
        assert begun.opened().durability == pb.DURABILITY_PROCESS
        assert sums(begun.reply()) == [5, 7]
        begun.cut()
    with place.up() as target:
        # Each goes on with its own, the tenant's operator too.
        assert [step(target, subject) for subject in ("desk", "feed", "ops")] == [3.0, 2.0, 4.0]
        assert refused(frames(target, "desk", stream.resume(1)).reply) == "SESSION_NOT_FOUND"
        # What has come back counts: there is no room for one more.
        more = Raw(target, Owner().opening(), metadata=bearer("token-of-feed"))
        assert refused(more.reply) == "QUOTA_EXCEEDED"
        again = frames(target, "feed", stream.resume(1, first=2), frame((0, 1.0), (1, 1.0)))
        assert again.opened().applied == 1
        assert sums(again.reply()) == [6, 8]
        again.cut()


def test_a_restart_leaves_sequences_and_streams_of_frames_with_their_tenants(
    models: Path, tmp_path: Path
) -> None:
    everything_is_its_tenants_again(Place(models, tmp_path))


def test_the_longest_names_fit_the_journal(models: Path, tmp_path: Path) -> None:
    place = Place(models, tmp_path)
    tenant, sequence = "\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 128, "\U0001f600" * 128
    token_file(tmp_path / "tokens.toml", (tenant, "feed"))
    (tmp_path / "policy.toml").write_text("[default]\n")
    stream = FrameOwner()
    with place.up() as target:
        assert step(target, "feed", sequence, sequence_start=True) == 1.0
        begun = frames(target, "feed", stream.opening(first=1), frame((0, 5.0), open_sessions=1))
        begun.replies(2)
        begun.cut()
    with place.up() as target:
        assert step(target, "feed", sequence) == 2.0
        assert frames(target, "feed", stream.resume(1)).opened().applied == 1


def test_a_connections_own_sequences_end_with_the_process(models: Path, tmp_path: Path) -> None:
    place = Place(models, tmp_path, sequence_scope="connection")
    with place.up() as target:
        assert step(target, "feed", sequence_start=True) == 1.0
    with place.up() as target:
        # They hold no room that nobody could give back.
        three = [Raw(target, Owner().opening(), metadata=bearer("token-of-feed")) for _ in range(3)]
        assert [each.opened().applied for each in three] == [0, 0, 0]


def _forgets_sequences(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scoped_infer, "owner_of", lambda found: ANYONE)


def _forgets_operators(patch: pytest.MonkeyPatch) -> None:
    plain = scoped_infer.owner_of
    patch.setattr(scoped_infer, "owner_of", lambda found: plain(found)._replace(operator=False))


def _forgets_streams(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovered, "tenant_of", lambda found: "")


def _gives_streams_to_another(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovered, "tenant_of", lambda found: "bank")


@pytest.mark.parametrize(
    "mutant", [_forgets_sequences, _forgets_operators, _forgets_streams, _gives_streams_to_another]
)
def test_the_scene_sees_a_server_that(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mutant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    mutant(monkeypatch)
    with pytest.raises(SEEN):
        everything_is_its_tenants_again(Place(models, tmp_path))
