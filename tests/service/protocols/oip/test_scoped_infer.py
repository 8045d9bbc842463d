"""What callers leave in memory has one bound for all of them together, however many they are."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from streamcell.proto.inference import oip
from streamcell.service.access.identity import ANYONE
from streamcell.service.errors import InvalidArgument
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import Limits
from streamcell.service.protocols.common.scopes import Scopes
from streamcell.service.protocols.oip import request_cache, sequences
from streamcell.service.protocols.oip.infer import Infer
from streamcell.service.protocols.oip.requests import ParsedRequest, ReplyTemplates, flags, plan
from streamcell.service.protocols.oip.scoped_infer import ScopedInfer
from streamcell.service.sessions.table import SessionTable

from .test_plans import FILE, _request

_CONNECTIONS = 32
LIMITS = Limits(
    max_message_bytes=1 << 20,
    max_steps_per_message=1,
    allow_non_finite=False,
    max_generate_steps=1,
    max_beam_width=1,
)


def _scoped() -> Any:
    nothing: Any = None
    whole: CallContext[Any] = CallContext(nothing, SessionTable(idle_timeout_s=0), nothing, LIMITS)
    return ScopedInfer(Scopes(whole), lambda context: Infer(context, 1 << 20, 16), by_connection=True)


def _planned(number: int, answers: ReplyTemplates) -> tuple[bytes, ParsedRequest]:
    request = _request(oip, "", 1, bytes(12))
    request.parameters[f"p{number}"].string_param = "x" * 1000
    return request.SerializeToString(), plan(request, flags(request), FILE, answers)[0]


def test_the_plans_of_all_connections_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 2**19
    monkeypatch.setattr(request_cache, "_MOST_BYTES", most)
    scoped, answers = _scoped(), ReplyTemplates()
    planned = [_planned(number, answers) for number in range(200)]
    infers = [scoped.of(ANYONE, f"peer {number}") for number in range(_CONNECTIONS)]
    for infer in infers:
        for data, asked in planned:
            infer.plans.keep(data, asked)
    assert sum(infer.plans.bytes for infer in infers) <= most
    assert all(infer.plans.find(planned[-1][0]) for infer in infers)


def test_the_ends_of_all_connections_sequences_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 2**19
    monkeypatch.setattr(sequences, "_ENDED_BYTES", most)
    scoped = _scoped()
    infers = [scoped.of(ANYONE, f"peer {number}") for number in range(_CONNECTIONS)]
    tracemalloc.start()
    try:
        for infer in infers:
            for number in range(200):
                error = InvalidArgument(f"{number} {'x' * 900}")
                infer.sequences.refuse(("model", number), error, new=True)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 2 * most
    for infer in infers:
        assert infer.sequences.not_started(("model", 199)).reason == "SEQUENCE_GAP"
