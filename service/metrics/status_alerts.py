"""The alerts of the status page: those of deploy/prometheus/alerts.yml that a server can evaluate by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .status_history import LastHour, Reading

_MINUTE_S = 60.0
_SERVER_CODES = ("INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE")
_CALLERS_CODES = ("UNAUTHENTICATED", "PERMISSION_DENIED")
_QUOTA = "QUOTA_EXCEEDED"  # a tenant's matter, not the server's


@dataclass(frozen=True)
class Alert:
    """A problem that an operator should look at.

    Attributes:
        name: as in alerts.yml.
        text: what is wrong and what to do.
    """

    name: str
    text: str


def firing(reading: Reading, hour: LastHour) -> list[Alert]:
    """The alerts for these figures, in the order of `RULES`."""
    return [Alert(name, text) for name, rule in RULES.items() for text in rule(reading, hour)]


def _not_ready(reading: Reading, hour: LastHour) -> Iterator[str]:
    if not reading.total("streamcell_ready"):
        yield "it takes no new sessions: it is loading its models, draining, or a thread hangs"


def _latency(reading: Reading, hour: LastHour) -> Iterator[str]:
    for model in reading.models():
        tail = [p.p99_s for _, p in hour.points(model, 5 * _MINUTE_S) if p.p99_s is not None]
        if tail and min(tail) > 0.05:
            yield (
                f"one message in a hundred of {model[0]} takes more than 50 ms: a long queue wants another replica, "
                "long runs want shorter chunks or a larger device"
            )


def _errors(reading: Reading, hour: LastHour) -> Iterator[str]:
    errors = hour.rose("errors", 5 * _MINUTE_S)
    bad = sum(count for (code, why), count in errors.items() if code in _SERVER_CODES and why != _QUOTA)
    if bad > 0.05 * (bad + sum(hour.rose("opened", 5 * _MINUTE_S).values())):
        yield f"{bad:.0f} calls or sessions failed or were refused in 5 minutes; the reasons are below"


def _refusals(reading: Reading, hour: LastHour) -> Iterator[str]:
    errors = hour.rose("errors", 10 * _MINUTE_S)
    refused = sum(
        count for (code, why), count in errors.items() if code == "RESOURCE_EXHAUSTED" and why != _QUOTA
    )
    if refused > 10 and refused > 0.01 * sum(hour.rose("opened", 10 * _MINUTE_S).values()):
        yield (
            f"{refused:.0f} calls were refused for want of room in 10 minutes; the reasons below say which bound"
        )


def _quotas(reading: Reading, hour: LastHour) -> Iterator[str]:
    errors = hour.rose("errors", 10 * _MINUTE_S)
    refused = sum(count for (_, why), count in errors.items() if why == _QUOTA)
    if refused > 100:
        yield (
            f"{refused:.0f} calls were refused over their tenants' quotas in 10 minutes; the audit log says whose"
        )


def _callers(reading: Reading, hour: LastHour) -> Iterator[str]:
    errors = hour.rose("errors", 10 * _MINUTE_S)
    refused = sum(count for (code, _), count in errors.items() if code in _CALLERS_CODES)
    if refused > 100:
        yield (
            f"{refused:.0f} calls in 10 minutes had no valid credential or no permission; the audit log says from where"
        )


def _websockets(reading: Reading, hour: LastHour) -> Iterator[str]:
    reasons = hour.rose("websockets_refused", 10 * _MINUTE_S)
    refused = reasons["limit",] + reasons["handshakes",]
    if refused > 10:
        yield f"{refused:.0f} WebSockets were refused for want of room in 10 minutes: raise --max-websockets"


def _slots(reading: Reading, hour: LastHour) -> Iterator[str]:
    used = reading.by("streamcell_slots_used", "model", "version")
    for key, slots in reading.by("streamcell_slots", "model", "version").items():
        if slots and used[key] > 0.9 * slots:
            yield (
                f"{used[key]:.0f} of {slots:.0f} state slots of {key[0]} are taken: raise --max-sessions, shorten "
                "--idle-timeout-s, or add a replica"
            )


def _lost(reading: Reading, hour: LastHour) -> Iterator[str]:
    ended = hour.rose("ended", 10 * _MINUTE_S)
    expired = ended["session_expired",]
    if expired > 10 and expired > 0.2 * sum(ended.values()):
        yield f"{expired:.0f} sessions expired in 10 minutes: clients do not close them, or pause for too long"


def _resumes(reading: Reading, hour: LastHour) -> Iterator[str]:
    resumes = hour.rose("resumes", 10 * _MINUTE_S)
    refused = sum(count for (_, result), count in resumes.items() if result != "resumed")
    if refused > 10 and refused > 0.05 * sum(resumes.values()):
        yield f"{refused:.0f} openings that resume a session were refused in 10 minutes"


def _after_restart(reading: Reading, hour: LastHour) -> Iterator[str]:
    resumes = hour.rose("resumes", 15 * _MINUTE_S)
    behind = sum(
        count for (source, result), count in resumes.items() if source == "restart" and result != "resumed"
    )
    if behind:
        yield (
            f"{behind:.0f} sessions that an earlier process had left could not be resumed: raise --journal-reply-bytes "
            "or open sessions with a smaller window"
        )


def _spills(reading: Reading, hour: LastHour) -> Iterator[str]:
    chunks = hour.rose("chunks", 10 * _MINUTE_S)
    for model, returns in hour.rose("spill_returns", 10 * _MINUTE_S).items():
        if returns > 1000 and returns > 0.5 * chunks[model]:
            yield (
                f"{returns:.0f} of {chunks[model]:.0f} rows of {model[0]} came back from the host's memory first: "
                "raise --slots above the number of sessions that step in turn, or add a replica"
            )


def _recovery(reading: Reading, hour: LastHour) -> Iterator[str]:
    for (name, _), took_s in reading.by("streamcell_recovery_seconds", "model", "version").items():
        if took_s > 30:
            yield f"bringing back the sessions of {name} took {took_s:.0f} s, in which the server was not ready"


def _any(counter: str, text: str) -> Callable[[Reading, LastHour], Iterator[str]]:
    def rule(reading: Reading, hour: LastHour) -> Iterator[str]:
        for values, count in hour.rose(counter, 15 * _MINUTE_S).items():
            if values != ("limited",):  # lines of one kind are limited on purpose
                yield text.format(*values, count=f"{count:.0f}")

    return rule


def _slow_lane(reading: Reading, hour: LastHour) -> Iterator[str]:
    if reading.info("streamcell_lane_info").get("lane") == "threaded":
        yield "it runs on its fallback lane, at about twice the CPU a step; the log says why"


def _store_behind(reading: Reading, hour: LastHour) -> Iterator[str]:
    if (lag_s := reading.total("streamcell_store_lag_seconds")) > 5:
        yield f"changes of sessions have been waiting for the store for {lag_s:.0f} s; the log says why"


def _store_refuses(reading: Reading, hour: LastHour) -> Iterator[str]:
    errors = hour.rose("store_errors", 15 * _MINUTE_S)
    for kind, remedy in (
        ("refused", "look at its user's rights and password"),
        ("full", "give it more memory"),
    ):
        if errors[kind,]:
            yield f"the store takes no sessions ({kind}): {remedy}"


def _lease(reading: Reading, hour: LastHour) -> Iterator[str]:
    if reading.total("streamcell_lease_age_seconds") > 0.6 * reading.total("streamcell_lease_seconds"):
        yield "its lease of the store is not renewed: replies of stored sessions stop, and others may take them"


RULES: dict[str, Callable[[Reading, LastHour], Iterator[str]]] = {
    "StreamCellNotReady": _not_ready,
    "StreamCellStalled": _any("stalls", "a thread ({}) made no progress; the log has its stack"),
    "StreamCellErrors": _errors,
    "StreamCellRefusals": _refusals,
    "StreamCellTenantsAtQuota": _quotas,
    "StreamCellCallersRefused": _callers,
    "StreamCellWebSocketsRefused": _websockets,
    "StreamCellLatencyHigh": _latency,
    "StreamCellSlotsNearlyFull": _slots,
    "StreamCellSpillsTooMuch": _spills,
    "StreamCellSessionsLost": _lost,
    "StreamCellResumesRefused": _resumes,
    "StreamCellRestartLostSessions": _after_restart,
    "StreamCellRecoverySlow": _recovery,
    "StreamCellKeptRepliesDropped": _any(
        "replies_dropped",
        "{count} kept replies were dropped: raise --kept-reply-bytes or --max-kept-reply-bytes",
    ),
    "StreamCellStoreBehind": _store_behind,
    "StreamCellStoreRefuses": _store_refuses,
    "StreamCellLeaseOld": _lease,
    "StreamCellSessionsFenced": _any(
        "fenced",
        "{count} sessions went on elsewhere without being given away: the server or its network stood still",
    ),
    "StreamCellModelNotLoaded": _any(
        "load_failures", "a new version of {} could not be loaded; the log says why"
    ),
    "StreamCellProcessLost": _any("restarts", "a process ({}) died with its streams and was restarted"),
    "StreamCellLogLinesLost": _any("lines_lost", "{count} log lines were lost ({})"),
    "StreamCellAuditLinesLost": _any("audit_lines_lost", "{count} lines of the audit log were lost ({})"),
    "StreamCellSlowLane": _slow_lane,
}
