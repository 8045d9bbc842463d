"""Which test of the conformance set holds each reason of an error and of a session's end, or why none needs to.

A server with front ends has two ways to say why something ended: a front end says it itself, or it passes the call on,
unparsed, and the engine process says it. `tests/repo/test_conformance_set.py` compares this table with the code.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]

MISTAKE = "end_to_end/test_mistakes.py::test_each_mistake_has_its_own_error_and_ends_nothing_else"
_OIP = "end_to_end/open_inference/"
_LIFE = "client/test_sync.py::test_limits_and_ends_of_a_servers_life_are_typed"
_UNLOADING = (
    "end_to_end/model_control/test_unloading.py::test_unloading_waits_for_live_sessions_and_takes_no_new_ones"
)
_CALLS = "end_to_end/test_control_calls.py::"
_COPIES = "end_to_end/durable/test_copies.py::"
_ANSWERS = _CALLS + "test_every_method_answers_a_valid_message"

HELD: dict[str, str] = {
    "BAD_PAGE_TOKEN": "end_to_end/test_wire.py::test_sessions_are_listed_in_pages_and_can_be_closed",
    "INDEX_OUT_OF_RANGE": "hostile_models/test_tokens.py::test_a_session_is_refused_by_name_value_and_range",
    "MODEL_UNLOADING": _UNLOADING,
    "NOT_SUPPORTED": _OIP + "test_protocol.py::test_what_is_not_offered_is_refused_in_words",
    "NO_MESSAGE": _CALLS + "test_a_call_that_sends_nothing_is_ended_whatever_it_is",
    "REFUSED_BY_MODEL": (
        "service/engine/test_refusal.py::test_only_the_session_that_sent_it_is_refused_whatever_else_was_in_the_run"
    ),
    "RUN_TIMEOUT": "hostile_models/test_run_timeout.py::test_a_session_whose_run_does_not_end_is_told_so",
    "SEQUENCE_GAP": _OIP + "test_sequence_errors.py::test_a_refused_step_ends_its_sequence_and_no_other",
    "SEQUENCE_NOT_STARTED": (
        _OIP + "test_interleaving.py::test_random_requests_are_answered_as_each_sequence_alone_would_be"
    ),
    "SERVER_DRAINING": _LIFE,
    "SESSION_TAKEN_OVER": "end_to_end/durable/test_resume.py::test_a_second_opening_takes_over_and_a_late_one_does_not",
    "NOT_RESUMABLE": _COPIES + "test_a_session_that_ends_with_its_stream_cannot_be_copied",
    "SNAPSHOT_INVALID": _COPIES + "test_a_refused_snapshot_is_told_whichever_process_reads_it",
    "SNAPSHOT_MISMATCH": _COPIES + "test_a_refused_snapshot_is_told_whichever_process_reads_it",
    "SESSION_CLOSED": _CALLS + "test_a_session_that_was_closed_is_gone_at_once",
    "SESSION_EXPIRED": _LIFE,
    "SESSION_LIMIT": _LIFE,
    "SESSION_NOT_FOUND": _ANSWERS,
    "NOT_AUTHENTICATED": "end_to_end/access/test_who.py::test_a_refused_stream_is_counted_and_takes_nothing",
    "NOT_PERMITTED": "end_to_end/access/test_who.py::test_a_refused_stream_is_counted_and_takes_nothing",
    "MODEL_CONTROL_OFF": _ANSWERS,
    "DRAIN_OFF": _ANSWERS,
    "NO_STORE": _ANSWERS,
    "UNKNOWN_SERVICE": _ANSWERS,
}  # fmt: skip
# How sessions end without an error.
ENDS: dict[str, str] = {
    "closed": "end_to_end/test_prometheus.py::test_the_figures_are_those_of_the_work_done",
    "cancelled": "end_to_end/test_faults.py::test_a_client_killed_in_mid_stream_gives_its_slots_back",
}

_PASSED_ON = "a front end passes the call on, and the way back is that of MODEL_UNLOADING and SEQUENCE_GAP"
_FRONT_ENDS = "only with front ends: end_to_end/frontends/test_lost_processes.py"
_COUNTED = (
    "the connection's memory is counted in whichever process reads it: test_memory_in_flight.py runs on both"
)
NOT_NEEDED: dict[str, str] = {
    **dict.fromkeys(
        (
            "BAD_GENERATION", "DUPLICATE_HANDLE", "GENERATION_UNSUPPORTED", "LOAD_PARAMETER", "MODEL_IN_USE",
            "MODEL_LOAD_FAILED", "MODEL_REPLACED", "MODEL_UNLOADED", "OPEN_INPUT_MISSING", "OPEN_INPUT_UNKNOWN",
            "TOO_MANY_ROWS", "STATE_BEHIND", "REPLIES_GONE", "DURABILITY_UNSUPPORTED",
            "UNKNOWN_HANDLE", "UNKNOWN_OUTPUT", "WRONG_CONTENTS", "WRONG_PARAMETER", "WRONG_SHAPE", "CONTROL_BUSY",
            "NO_THREAD",
        ),
        _PASSED_ON,
    ),
    "TOKEN_EXPIRED": "said in the same place as NOT_AUTHENTICATED",
    "QUOTA_EXCEEDED": "with tenants a front end passes each call on: as NOT_PERMITTED",
    "QUEUE_FULL": "over gRPC a full queue only stops reading",
    "ENGINE_LOST": _FRONT_ENDS,
    "frontend_lost": _FRONT_ENDS,
    "MEMORY_IN_FLIGHT": _COUNTED,
    "REFLECTION_LIMIT": "each process counts its own reflection calls, with the same code",
    "ENGINE_FAILED": "the engine's two runners are held to it by service/processes/test_ring_refusals.py",
    **dict.fromkeys(
        ("SESSION_MOVED", "SESSION_ELSEWHERE", "STORE_UNAVAILABLE", "STORED_STATE_INVALID", "STILL_MOVING"),
        "only with a shared store, which front ends do not go with",
    ),
    "INTERNAL": "a fault of the server, which no client can ask for",
}  # fmt: skip


@cache
def conformance_set() -> dict[str, str]:
    """The source of each test that is marked `conformance`, or some of whose cases are, by "path::name"."""
    found = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        functions = [each for each in ast.parse(path.read_text()).body if isinstance(each, ast.FunctionDef)]
        fixtures = {each.name for each in functions if _marked(each) and not each.name.startswith("test_")}
        for each in functions:
            if each.name.startswith("test_") and (
                _marked(each) or fixtures & {a.arg for a in each.args.args}
            ):
                found[f"{path.relative_to(TESTS)}::{each.name}"] = ast.unparse(each)
    return found


def _marked(function: ast.FunctionDef) -> bool:
    return any("conformance" in ast.unparse(each).lower() for each in function.decorator_list)
