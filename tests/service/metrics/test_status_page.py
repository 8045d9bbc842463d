"""The status page's figures, on a clock of their own, from the metrics that the server collects."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from streamcell.service.access.access_errors import NotAuthenticated, NotPermitted, QuotaExceeded
from streamcell.service.errors import SessionLimit
from streamcell.service.metrics import status_page
from streamcell.service.metrics.model_metrics import ModelMetrics, Pool
from streamcell.service.metrics.page import Pages
from streamcell.service.metrics.server_metrics import ServerMetrics
from streamcell.service.metrics.status_alerts import RULES, firing
from streamcell.service.metrics.status_history import HOUR_S, LOOK_S, History, LastHour, Reading, quantile
from streamcell.service.metrics.status_page import HEADERS, StatusPage, render

KEY = ("m", "1")


class Server:
    """The figures of a server with a model, and the history of looks at them."""

    def __init__(self) -> None:
        self.metrics = ServerMetrics()
        self.metrics.lane = "fast"
        self.metrics.readiness.serve(True)
        self.model = ModelMetrics(*KEY)
        self.metrics.add(self.model)
        self.more: list[Metric] = []
        self.history = History()
        self.now_s = 1000.0

    def reading(self) -> Reading:
        return Reading([*self.metrics.collect(), *self.more], self.now_s)

    def look(self, after_s: float = LOOK_S) -> None:
        self.now_s += after_s
        self.history.add(self.reading())

    def hour(self) -> LastHour:
        return self.history.until(self.reading())

    def alerts(self) -> list[str]:
        return [alert.name for alert in firing(self.reading(), self.hour())]

    def page(self) -> str:
        return render(self.reading(), self.hour(), 0.0).decode()


@pytest.fixture
def server() -> Server:
    return Server()


def test_a_quantile_is_what_prometheus_makes_of_the_buckets() -> None:
    buckets = [(0.1, 10.0), (0.2, 30.0), (0.4, 40.0), (float("inf"), 40.0)]
    assert quantile(buckets, 0.5) == pytest.approx(0.15)
    assert quantile(buckets, 0.25) == pytest.approx(0.1)
    assert quantile(buckets, 0.9) == pytest.approx(0.32)
    assert quantile([(0.1, 0.0), (float("inf"), 5.0)], 0.5) == 0.1
    assert quantile([(0.1, 0.0), (float("inf"), 0.0)], 0.5) is None
    assert quantile([], 0.5) is None


def test_a_point_tells_what_ran_since_the_last_look(server: Server) -> None:
    server.model.step_latency_s.observe([0.0021] * 99)
    server.look()
    server.model.step_latency_s.observe([0.00025] * 100)
    server.model.steps += 500
    for rows in (2, 4):
        server.model.ran(rows, rows, 0.001)
    server.look()
    server.look()
    points = [point for _, point in server.hour().points(KEY)]
    assert points[0].p50_s == pytest.approx(0.0025, rel=0.25)
    assert points[1].p50_s == pytest.approx(0.00025, rel=0.25)
    assert (points[1].rows, points[1].steps_s) == (3.0, 500 / LOOK_S)
    assert points[2].p99_s is None
    assert points[2].rows is None


def test_the_newest_figures_need_no_look_yet(server: Server) -> None:
    server.model.session_ended("closed")
    assert server.hour().rose("ended") == {("closed",): 1.0}
    assert len(server.hour().looks) == 1


def test_only_the_last_hour_counts_and_is_kept(server: Server) -> None:
    for _ in range(500):
        server.model.session_ended("closed")
        server.look()
    assert server.hour().rose("ended") == {("closed",): HOUR_S / LOOK_S - 0.0}
    assert server.hour().rose("ended", 5 * LOOK_S) == {("closed",): 5.0}
    assert len(server.history.until(server.reading()).looks) <= HOUR_S / LOOK_S + 1


def test_counters_that_begin_anew_are_not_negative(server: Server) -> None:
    """An engine process that was restarted counts from 0."""
    server.model.session_ended("closed", 10)
    server.look()
    server.model.ended.clear()
    server.model.session_ended("closed", 3)
    assert server.hour().rose("ended") == {("closed",): 13.0}


def family(of: str, name: str, value: float, **labels: str) -> Metric:
    made = CounterMetricFamily if of == "counter" else GaugeMetricFamily
    one = made(name, "", labels=[*labels])
    one.add_metric([*labels.values()], value)
    return one


def provoke(server: Server, alert: str) -> None:
    """Do what `alert` tells of."""
    model = server.model
    if alert == "StreamCellNotReady":
        server.metrics.readiness.serve(False)
    elif alert == "StreamCellStalled":
        server.metrics.stall("engine", "m", True)
        server.metrics.stall("engine", "m", False)
    elif alert == "StreamCellErrors":
        server.metrics.error(SessionLimit("full"), 10)
    elif alert == "StreamCellRefusals":
        model.session_opened(1000)
        server.metrics.error(SessionLimit("full"), 20)
    elif alert == "StreamCellTenantsAtQuota":
        server.metrics.error(QuotaExceeded("full"), 101)
    elif alert == "StreamCellCallersRefused":
        server.metrics.error(NotAuthenticated("who?"), 51)
        server.metrics.error(NotPermitted("no"), 50)
    elif alert == "StreamCellLatencyHigh":
        model.step_latency_s.observe([0.09] * 100)
    elif alert == "StreamCellSlotsNearlyFull":
        model.attach(Pool(100, 8, lambda: 91, lambda: 0))
    elif alert == "StreamCellSpillsTooMuch":
        model.chunks += 2000
        model.moved(0, 1100, 0.001)
    elif alert == "StreamCellSessionsLost":
        model.session_ended("session_expired", 50)
    elif alert == "StreamCellResumesRefused":
        for _ in range(11):
            model.session_resumed("detached", "replies_gone")
    elif alert == "StreamCellRestartLostSessions":
        model.session_resumed("restart", "state_behind")
    elif alert == "StreamCellRecoverySlow":
        model.recovery_s = 31
    elif alert == "StreamCellKeptRepliesDropped":
        server.metrics.kept_replies = lambda: (0, 1)
    elif alert == "StreamCellModelNotLoaded":
        server.metrics.load_failed("m")
    elif alert == "StreamCellProcessLost":
        server.more = [family("counter", "streamcell_process_restarts", 1, kind="engine")]
    elif alert == "StreamCellAuditLinesLost":
        server.more = [family("counter", "streamcell_audit_lines_dropped", 1, reason="queue_full")]
    elif alert == "StreamCellLogLinesLost":
        server.more = [family("counter", "streamcell_log_lines_dropped", 1, reason="queue_full")]
    elif alert == "StreamCellWebSocketsRefused":
        server.more = [*server.more, family("counter", "streamcell_websockets_refused", 11, reason="limit")]
    elif alert == "StreamCellStoreBehind":
        server.more = [family("gauge", "streamcell_store_lag_seconds", 6)]
    elif alert == "StreamCellStoreRefuses":
        server.more = [family("counter", "streamcell_store_errors", 1, kind="full")]
    elif alert == "StreamCellLeaseOld":
        ages = {"lease_age": float("inf"), "lease": 5}
        server.more = [family("gauge", f"streamcell_{name}_seconds", age) for name, age in ages.items()]
    elif alert == "StreamCellSessionsFenced":
        server.more = [family("counter", "streamcell_fenced", 1)]
    elif alert == "StreamCellSlowLane":
        server.metrics.lane = "threaded"


@pytest.mark.parametrize("alert", [*RULES])
def test_an_alert_fires_for_its_cause_alone_and_ends_with_it(alert: str, server: Server) -> None:
    server.model.session_opened(100)
    server.model.session_ended("closed", 100)
    server.more = [
        family("counter", "streamcell_log_lines_dropped", 9, reason="limited"),
        family("counter", "streamcell_websockets_refused", 99, reason="origin"),
    ]
    server.look()
    assert server.alerts() == []
    provoke(server, alert)
    assert server.alerts() == [alert]
    assert alert in server.page()
    lasting = ("NotReady", "SlotsNearlyFull", "RecoverySlow", "SlowLane", "StoreBehind", "LeaseOld")
    if not alert.endswith(lasting):
        server.look()
        server.look(1000.0)
        assert server.alerts() == []


def test_prometheus_and_the_page_have_the_same_alerts() -> None:
    rules = yaml.safe_load((Path(__file__).parents[3] / "deploy/prometheus/alerts.yml").read_text())
    names = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    assert names - RULES.keys() == {
        "StreamCellDown",
        "StreamCellReplicaGone",
    }  # which no server can tell of itself
    assert RULES.keys() - names == set()


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(attrs)


def test_no_text_becomes_markup(server: Server) -> None:
    evil = "</p><script>alert(1)</script>\" onload='x' style=color:red &amp; <a href=//evil>"
    model = ModelMetrics(evil, evil)
    model.about = dict.fromkeys(("kind", "arithmetic", "proof", "restrictions"), evil)
    model.sessions = lambda: {evil: 1}
    model.session_ended(evil)
    model.attach(Pool(10, 8, lambda: 10, lambda: 0))
    model.recovery_s = 99
    server.metrics.add(model)
    server.metrics.load_failed(evil)
    server.metrics.lane = evil
    server.more = [
        family("gauge", "streamcell_tenant_sessions", 1, tenant=evil),
        family("counter", "streamcell_process_restarts", 1, kind=evil),
        InfoMetricFamily("streamcell_build", "", value={"version": evil}),
    ]
    plain, page = Tags(Server().page()), server.page()
    found = Tags(page)
    assert found.tags - plain.tags <= {"ul", "li", "table", "tr", "td", "meter", "polyline"}
    assert {name for name, _ in found.attributes} - {name for name, _ in plain.attributes} <= {
        "min",
        "max",
        "high",
        "value",
        "points",
    }
    assert {value for name, value in found.attributes if name in ("href", "src")} == {"/metrics"}
    assert page.count("&lt;script&gt;alert(1)") >= 9


def test_the_policy_names_the_page_s_own_style(server: Server) -> None:
    style = re.findall(r"<style>(.*?)</style>", server.page(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy
    assert len(style) == 1
    assert " style=" not in server.page()


def test_a_page_of_many_models_is_bounded(server: Server) -> None:
    def add(names: Iterable[int]) -> None:
        for name in names:
            server.metrics.add(ModelMetrics(f"model-{name}", "1"))

    add(range(60))
    assert "… and 11 more models" in server.page()
    size = len(server.page())
    add(range(60, 200))
    assert len(server.page()) - size < 100


def test_tenants_are_bounded_whoever_names_them(server: Server) -> None:
    server.metrics.tenants = lambda: {f"tenant-{number}": number for number in range(1, 301)}
    sums = server.reading().by("streamcell_tenant_sessions", "tenant")
    assert len(sums) == 101
    assert sums["tenant-300",] == 300
    assert sums["(others)",] == sum(range(1, 201))


def test_one_page_is_made_for_all_that_wait_and_then_its_maker_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []

    def slow(*_: object) -> bytes:
        time.sleep(0.05)
        made.append(b"page %d" % len(made))
        return made[-1]

    monkeypatch.setattr(status_page, "render", slow)
    page = StatusPage(Pages(CollectorRegistry()))
    arrived_s = time.monotonic()
    assert [page.page(arrived_s) for _ in range(3)] == [b"page 0"] * 3
    assert page.page(time.monotonic()) == b"page 1"
    # As for the page of metrics: at most a tenth of one core, however many ask.
    assert time.monotonic() - arrived_s > 0.5
