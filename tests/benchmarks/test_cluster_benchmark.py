"""The benchmark of a cluster: levels, pauses, ways through proxies."""

from __future__ import annotations

from typing import Any

import pytest

from streamcell.benchmarks.cluster import __main__ as benchmark
from streamcell.benchmarks.cluster.__main__ import GOAL, goals, markdown, parse, run
from streamcell.benchmarks.cluster.levels import LEVELS
from streamcell.benchmarks.load.dialects import resumable
from streamcell.proto import pb


def test_only_replies_to_messages_are_counted() -> None:
    counts = resumable("lstm", 4, 4, 1).counts
    assert counts is not None
    assert not counts(pb.StreamResponse(durable=7).SerializeToString())
    assert counts(pb.StreamResponse(outputs=[b"abcd"], step_index=1, durable=7).SerializeToString())
    assert counts(pb.StreamResponse(opened=pb.SessionOpened(durable=7)).SerializeToString())
    assert counts(pb.StreamResponse(step_index=1).SerializeToString())


def test_proxies_get_the_id_that_the_opening_has() -> None:
    speech = resumable("lstm", 4, 4, 1)
    first = speech.first(0)
    session = pb.StreamRequest.FromString(first).open.session
    assert speech.metadata(first) == (("streamcell-session", session.hex()),)


def test_each_level_is_measured_on_a_server_of_its_own(program: Any) -> None:
    report = run(parse(["--quick", "--parts", "levels"]), print)
    lines = {line["level"]: line for line in report["levels"]}
    assert list(lines) == list(LEVELS)
    for line in lines.values():
        assert line["sessions"] == 8
        assert line["server_cpu_us_per_step"] > 0
        assert line["store_cpu_us_per_step"] >= 0
    assert lines["none"]["over"] == 1
    assert lines["none"]["added_ms"] == 0
    assert "| 8 | `store-sync` |" in markdown(report)
    ((text, met),) = goals(report)
    assert met == (lines["store-async"]["over"] <= GOAL)
    assert "8 sessions" in text


def test_each_way_to_the_replicas_is_measured(program: Any) -> None:
    program("haproxy")
    report = run(parse(["--quick", "--parts", "throughput"]), print)
    assert [(line["replicas"], line["way"]) for line in report["throughput"]] == [
        (1, "direct"),
        (1, "envoy"),
        (1, "haproxy"),
    ]
    assert all(line["steps_per_s"] > 0 for line in report["throughput"])
    assert [line["proxy_cpu_us_per_step"] is not None for line in report["throughput"]] == [False, True, True]


@pytest.mark.slow
def test_pauses_are_those_of_moved_and_of_resumed_sessions(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("haproxy")
    monkeypatch.setattr(benchmark, "PAUSED", benchmark.PAUSED[1:])  # each level and each proxy
    report = run(parse(["--quick", "--parts", "pauses"]), print)
    for line in report["pauses"]:
        assert line["steady"]["count"] > 0
        assert line["moved"]["count"] + line["resumed"]["count"] > 0
    assert "store-async, haproxy" in markdown(report)
