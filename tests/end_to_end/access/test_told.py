"""What the audit log, the metrics and the status page tell of tenants."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.client import StreamCellError, connect
from streamcell.client.local_server import ServerProcess
from streamcell.proto.inference import rpc as oip_rpc
from tests.support.audit_lines import audit_lines
from tests.support.callers import channel_of
from tests.support.infer_requests import request as infer
from tests.support.tokens import bearer, token_file
from tests.support.two_tenants import POLICY
from tests.support.waiting import waited


@pytest.mark.conformance
def test_it_is_told_who_did_what_and_who_was_refused(
    start_server: Callable[..., ServerProcess], models: Path, tmp_path: Path
) -> None:
    tokens = token_file(tmp_path / "tokens.toml", ("acme", "feed"), ("bank", "desk"))
    (tmp_path / "policy.toml").write_text(POLICY)
    log = tmp_path / "audit.log"
    flags = (
        "--metrics-open",
        "--token-file",
        str(tokens),
        "--policy-file",
        str(tmp_path / "policy.toml"),
        "--audit-log",
        str(log),
    )
    server = start_server(models, *flags)
    acme = connect(server.target, metadata=bearer("token-of-feed"))
    bank = connect(server.target, metadata=bearer("token-of-desk"))
    stranger = connect(server.target, metadata=bearer("token-of-nobody"))
    with acme, bank, stranger, acme.session("sum") as session:
        session.step([1.0])
        with (
            acme.session("sum", resume=True),
            acme.pool("sum", 1),
            channel_of(server.target, "feed") as channel,
        ):
            stub: Any = oip_rpc.GRPCInferenceServiceStub(channel)
            stub.ModelInfer(
                infer(
                    np.ones((1, 1, 1), np.float32),
                    "sum",
                    sequence_id=1,
                    sequence_start=True,
                    sequence_end=True,
                )
            )
        with pytest.raises(StreamCellError):
            bank.close_session(session.id)
        with pytest.raises(StreamCellError):
            bank.drain_replica(0.5)
        with pytest.raises(StreamCellError):
            bank.load_model("sum")
        with pytest.raises(StreamCellError):
            stranger.models()
        assert waited(lambda: server.metric("streamcell_tenant_sessions", tenant="acme") == 1)
        assert waited(lambda: server.metric("streamcell_tenant_sessions", tenant="bank") == 0)
        with urllib.request.urlopen(server.metrics_url.removesuffix("metrics"), timeout=60) as answer:
            assert (
                "<h2>Sessions by tenant</h2><table><tr><td>acme</td><td>1</td></tr>" in answer.read().decode()
            )
    assert server.stop() == 0
    told = audit_lines(log)
    opened = [line for line in told if line["event"] == "opened"]
    assert len(opened) == 4
    assert {(line["tenant"], line["by"]) for line in opened} == {("acme", "feed")}
    of_session = [(line["event"], line["tenant"]) for line in told if line.get("session") == session.id]
    assert of_session[0] == ("opened", "acme")
    assert ("close_asked", "bank") in of_session
    assert ("ended", "acme") in of_session
    asked = [(line["event"], line["by"]) for line in told if line["event"].endswith("_asked")]
    assert asked == [("close_asked", "desk"), ("drain_replica_asked", "desk"), ("load_asked", "desk")]
    refused = {line["reason"]: line for line in told if line["event"] == "refused"}
    assert refused["SESSION_NOT_FOUND"]["by"] == "desk"
    assert refused["NOT_PERMITTED"]["tenant"] == "bank"
    assert "by" not in refused["NOT_AUTHENTICATED"]
    assert b"token-of" not in log.read_bytes()
