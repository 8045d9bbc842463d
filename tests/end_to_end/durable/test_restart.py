"""Orderly restarts of a server with a journal, and what a session in one cannot do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb
from streamcell.service.durability.layout import PLACES
from tests.support.onnx_files import parsed, save
from tests.support.ports import free_port
from tests.support.resumable import Owner, Raw, save_sum, step, sums
from tests.support.waiting import waited

Serve = Callable[..., ServerProcess]


@pytest.fixture
def durable(start_server: Serve, tmp_path: Path) -> Callable[..., ServerProcess]:
    """A server on the test's journal and models."""
    models = save_sum(tmp_path / "models") if (tmp_path / "models").mkdir() is None else tmp_path
    port = free_port()

    def start(*flags: str) -> ServerProcess:
        journal = ("--durability", "process", "--journal-dir", str(tmp_path / "journal"))
        return start_server(models, "--port", str(port), "--max-sessions", "16", *journal, *flags)

    return start


def test_a_client_s_session_goes_on_over_a_restart_in_order(durable: Serve) -> None:
    server = durable("--grace-s", "0")
    with connect(server.target) as client, client.session("sum", resume=True) as session:
        assert session.step([1.0])[0] == 1
        assert session.step([2.0])[0] == 3
        assert server.stop() == 0
        again = durable()
        assert again.target == server.target
        assert session.step([4.0])[0] == 7
        assert waited(
            lambda: again.metric("streamcell_resumes_total", source="restart", result="resumed") == 1
        )


def test_a_session_that_ended_does_not_come_back(durable: Serve) -> None:
    server, closed, owner = durable(), Owner(), Owner()
    raw = Raw(server.target, closed.opening())
    raw.opened()
    raw.send(step(1))
    raw.reply()
    raw.close(1)
    Raw(server.target, owner.opening()).opened()
    server.stop()
    server = durable()
    assert Raw(server.target, closed.resume(1)).error()[0] == "SESSION_NOT_FOUND"
    assert Raw(server.target, owner.resume(0)).opened().applied == 0


def test_a_late_opening_is_known_after_a_restart(durable: Serve) -> None:
    server, owner = durable(), Owner()
    Raw(server.target, owner.opening()).opened()
    late = owner.resume(0)
    Raw(server.target, owner.resume(0)).opened()
    server.stop()
    server = durable()
    assert Raw(server.target, late).error()[0] == "SESSION_TAKEN_OVER"


def test_a_changed_model_gets_none_of_the_old_one_s_states(durable: Serve, tmp_path: Path) -> None:
    server, owner = durable(), Owner()
    raw = Raw(server.target, owner.opening())
    raw.opened()
    raw.send(step(1))
    raw.reply()
    raw.cut()
    server.stop()
    with (tmp_path / "models" / "sum.toml").open("a") as sidecar:
        sidecar.write("\n# another description\n")
    server = durable()
    assert Raw(server.target, owner.resume(1)).error()[0] == "SESSION_NOT_FOUND"
    assert any("set aside" in line["event"] for line in server.log)


def test_a_session_in_memory_stays_out_of_the_file(durable: Serve) -> None:
    server, owner = durable(), Owner()
    opened = Raw(server.target, owner.opening(durability=pb.DURABILITY_NONE)).opened()
    assert opened.durability == pb.DURABILITY_NONE
    server.stop()
    assert Raw(durable().target, owner.resume(0)).error()[0] == "SESSION_NOT_FOUND"


def test_what_a_session_in_a_file_cannot_do_is_told_before_it_runs(durable: Serve) -> None:
    server = durable("--journal-reply-bytes", "512")
    # 512 bytes for four replies: 128 each, of which a reply's frame may take 72.
    owner = Owner(4)
    raw = Raw(server.target, owner.opening())
    raw.opened()
    raw.send(step(*[1.0] * 14))
    assert sums(raw.reply())[-1] == 14
    raw.send(step(*[1.0] * 40, output_mode=pb.OUTPUT_MODE_LAST))
    assert sums(raw.reply()) == [54]
    raw.send(step(*[1.0] * 15))
    reason, facts, text = raw.error()
    assert (reason, facts["limit"]) == ("MESSAGE_TOO_LARGE", "128")
    assert "OUTPUT_MODE_LAST" in text
    raw = Raw(server.target, Owner(4).opening())
    raw.opened()
    raw.send(step(1, generate=pb.Generate(steps=2)))
    reason, facts, _ = raw.error()
    assert (reason, facts["limit"]) == ("MESSAGE_TOO_LARGE", str(512 // PLACES))


def test_a_server_without_a_journal_says_so(server: ServerProcess) -> None:
    opening = Owner().opening(durability=pb.DURABILITY_PROCESS)
    assert Raw(server.target, opening).error()[0] == "DURABILITY_UNSUPPORTED"


def test_a_server_without_a_store_does_not_pretend_to_have_one(durable: Serve) -> None:
    reason, facts, text = Raw(durable().target, Owner().opening(durability=pb.DURABILITY_STORE_ASYNC)).error()
    assert (reason, facts["has"]) == ("DURABILITY_UNSUPPORTED", str(pb.DURABILITY_PROCESS))
    assert "ask for DURABILITY_PROCESS" in text


SCALED = (
    "(float[b, 1] x, float[b, 1] scale, float[b, 1] h) => (float[b, 1] y, float[b, 1] h_next)"
    "{ scaled = Mul(x, scale) h_next = Add(scaled, h) y = Identity(h_next) }"
)
SIDECAR = """
layout = "batch"
outputs = ["y"]
inputs = ["x", { name = "scale", at = "open" }]
[[states]]
input = "h"
output = "h_next"
"""


def test_what_a_session_was_given_comes_back_without_what_else_its_opening_had(
    durable: Serve, tmp_path: Path
) -> None:
    save(parsed(SCALED), tmp_path / "models" / "scaled.onnx", SIDECAR)
    server, owner = durable(), Owner(model="scaled")
    given = pb.OpenInput(name="scale", value=np.float32(3).tobytes())
    given.MergeFromString(b"\xfa\x7f\x80\x40" + bytes(8192))  # a field that nobody knows
    assert given.ByteSize() > 8192
    raw = Raw(server.target, owner.opening(inputs=[given]))
    assert raw.opened().durability == pb.DURABILITY_PROCESS
    server.stop()
    raw = Raw(durable().target, owner.resume(0))
    raw.opened()
    raw.send(step(2))
    assert sums(raw.reply()) == [6]
