"""The status page: one HTML document without scripts, pictures or requests to anywhere. Every text in it is escaped."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

import structlog

from .page import Pages
from .status_alerts import firing
from .status_history import HOUR_S, LOOK_S, History, LastHour, ModelKey, Point, Reading, Sums

_log = structlog.get_logger(__name__)

_MOST_MODELS, _MOST_LINES = 50, 30
_REFRESH_S = 15
_WIDTH, _HEIGHT = 360.0, 64.0

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --page: #f4f6f8; --card: #fff; --line: #d9dfe6;
  --good: #17693a; --bad: #a3231b; --one: #1f6fb2; --two: #b2571f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b5; --page: #12161c; --card: #1b2129;
  --line: #313a46; --good: #6cc58f; --bad: #ff8a80; --one: #6cb4f0; --two: #f0a56c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
header { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: baseline; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.05rem; margin: 0 0 .5rem; }
p { margin: .25rem 0; } small, figcaption, dt { color: var(--soft); font-size: .85rem; }
main { display: grid; gap: 1rem; margin-top: 1rem;
  align-items: start; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .9rem; min-width: 0; }
.wide { grid-column: 1 / -1; } .good { color: var(--good); } .bad { color: var(--bad); }
.bad section, section.bad { border-color: var(--bad); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(6rem, 1fr)); gap: .4rem; margin: .5rem 0; }
dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
figure { margin: .6rem 0 0; } svg { display: block; width: 100%; height: 4rem; border-bottom: 1px solid var(--line); }
polyline { fill: none; stroke-width: 2; stroke-linecap: round; vector-effect: non-scaling-stroke; }
.one { stroke: var(--one); } .two { stroke: var(--two); } b.one { color: var(--one); } b.two { color: var(--two); }
table { border-collapse: collapse; width: 100%; } td { border-top: 1px solid var(--line); padding: .25rem 0; }
td:last-child { text-align: right; font-variant-numeric: tabular-nums; } ul { margin: 0; padding-left: 1.1rem; }
meter { width: 100%; } a { color: inherit; }
"""
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class StatusPage:
    """Looks at the metrics every `LOOK_S` seconds, from `start` to `stop`, and makes the page on request."""

    def __init__(self, pages: Pages) -> None:
        """`pages`: has the metrics, and bounds what making pages of them costs."""
        self._pages = pages
        self._history = History()
        self._turn = threading.Lock()
        self._latest = b""
        self._latest_s = -math.inf  # when it was begun
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look, name="status-history", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()

    def _look(self) -> None:
        while not self._stopping.wait(LOOK_S):
            try:
                now_s = time.monotonic()
                self._history.add(Reading(self._pages.families(now_s), now_s))
            except Exception as error:  # one look is missing then
                _log.error("status page", exc_info=error)

    def page(self, since_s: float) -> bytes:
        """The page as it was at `since_s` (by `time.monotonic`) or later, one for all that wait for it."""
        with self._turn:
            if self._latest_s < since_s:
                now_s = time.monotonic()
                self._latest = self._pages.other(now_s, lambda families: self._made(Reading(families, now_s)))
                self._latest_s = now_s
            return self._latest

    def _made(self, reading: Reading) -> bytes:
        return render(reading, self._history.until(reading), time.time())


def render(reading: Reading, hour: LastHour, now_s: float) -> bytes:
    """The page as UTF-8.

    Args:
        reading: the figures.
        hour: what changed until then.
        now_s: seconds since 1970.
    """
    models = reading.models()
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>StreamCell</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{_REFRESH_S}"><style>{_STYLE}</style></head><body>',
        _header(reading, now_s),
        "<main>",
        _alerts(reading, hour),
        *(_model(model, reading, hour) for model in models[:_MOST_MODELS]),
    ]
    if not models:
        parts.append('<section class="wide"><h2>Models</h2><p>No model is served.</p></section>')
    elif len(models) > _MOST_MODELS:
        parts.append(f'<section class="wide"><p>… and {len(models) - _MOST_MODELS} more models</p></section>')
    parts += [
        _table("Sessions by state", reading.by("streamcell_sessions", "state"), "none are live"),
        _table("Sessions by tenant", reading.by("streamcell_tenant_sessions", "tenant"), ""),
        _table("Sessions ended in the last hour", hour.rose("ended"), "none has ended"),
        _table("Errors sent to clients in the last hour", hour.rose("errors"), "none was sent"),
        "</main><p><small>Every figure is also on <a href=/metrics>/metrics</a>. This page reloads itself every "
        f"{_REFRESH_S} s.</small></p></body></html>\n",
    ]
    return "".join(parts).encode(errors="replace")


def _text(value: object) -> str:
    """`value` as text that HTML takes literally, in elements and in quoted attributes."""
    return html.escape(str(value))


def _header(reading: Reading, now_s: float) -> str:
    build, lane = reading.info("streamcell_build_info"), reading.info("streamcell_lane_info").get("lane", "")
    ready = (
        '<b class="good">ready</b>' if reading.total("streamcell_ready") else '<b class="bad">not ready</b>'
    )
    frontends = int(reading.total("streamcell_processes", kind="frontend"))
    said = [
        f"version {build.get('version', 'unknown')}",
        "compiled" if build.get("compiled") == "true" else "interpreted",
        *([f"lane {lane}"] if lane else []),
        f"{frontends} front ends" if frontends else "one process",
        time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s)),
    ]
    return f"<header><h1>StreamCell</h1>{ready}<small>{_text(' · '.join(said))}</small></header>"


def _alerts(reading: Reading, hour: LastHour) -> str:
    alerts = firing(reading, hour)
    if not alerts:
        return '<section class="wide"><h2>Alerts</h2><p class="good">None.</p></section>'
    items = "".join(
        f"<li><b>{_text(each.name)}</b>: {_text(each.text)}</li>" for each in alerts[:_MOST_LINES]
    )
    return f'<section class="wide bad"><h2>Alerts</h2><ul>{items}</ul></section>'


def _model(model: ModelKey, reading: Reading, hour: LastHour) -> str:
    only = dict(zip(("model", "version"), model, strict=True))
    about = reading.info("streamcell_model_info", **only)
    points = hour.points(model)
    # The newest look may be a second old.
    ran = (point for ago_s, point in reversed(points) if ago_s <= 3 * LOOK_S and point.rows is not None)
    newest = next(ran, Point())
    sessions = sum(reading.by("streamcell_sessions", "state", **only).values())
    slots = reading.total("streamcell_slots", **only)
    used = reading.total("streamcell_slots_used", **only)
    figures = {
        "sessions": f"{sessions:.0f}",
        "steps a second": f"{newest.steps_s:.0f}",
        "p50": _ms(newest.p50_s),
        "p99": _ms(newest.p99_s),
        "mean batch": "–" if newest.rows is None else f"{newest.rows:.1f}",
    }
    rows = "".join(
        f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in figures.items()
    )
    proof = about.get("proof", "unknown")
    told = "".join(
        f'<p class="bad">{_text(text)}</p>' for text in about.get("restrictions", "").split("\n") if text
    )
    return (
        f"<section><h2>{_text(model[0])} <small>version {_text(model[1])} · {_text(about.get('kind', ''))}"
        f" · {_text(about.get('arithmetic', ''))}</small></h2>"
        f"<dl>{rows}</dl>"
        + (
            f"<small>{used:.0f} of {slots:.0f} state slots taken</small>"
            f'<meter min="0" max="{slots:.0f}" high="{0.9 * slots:.0f}" value="{used:.0f}"></meter>'
            if slots
            else ""
        )
        + _chart("latency", "ms", [("p50", "one"), ("p99", "two")], _latencies(points))
        + _chart("mean batch", "sessions", [("rows", "one")], [[(ago_s, p.rows) for ago_s, p in points]])
        + f"<p><small>Proof: {_text(proof)}</small></p>{told}</section>"
    )


def _latencies(points: Sequence[tuple[float, Point]]) -> list[list[tuple[float, float | None]]]:
    def ms(value_s: float | None) -> float | None:
        return None if value_s is None else 1e3 * value_s

    return [[(ago_s, ms(p.p50_s)) for ago_s, p in points], [(ago_s, ms(p.p99_s)) for ago_s, p in points]]


def _ms(value_s: float | None) -> str:
    return "–" if value_s is None else f"{1e3 * value_s:.3g} ms"


def _chart(
    name: str,
    unit: str,
    lines: Sequence[tuple[str, str]],
    values: Sequence[Sequence[tuple[float, float | None]]],
) -> str:
    """An hour from left to right; `values`: for each line (seconds ago, value or None for a gap)."""
    most = max((value for line in values for _, value in line if value is not None), default=0.0)
    drawn = "".join(
        f'<polyline class="{style}" points="{piece}"/>'
        for (_, style), line in zip(lines, values, strict=True)
        for piece in _pieces(line, most or 1.0)
    )
    legend = " ".join(f'<b class="{style}">{label}</b>' for label, style in lines)
    caption = (
        f"{name} in the last hour, {legend}, at most {most:.3g} {unit}" if most else f"{name}: nothing ran"
    )
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{name} in the last hour">{drawn}</svg><figcaption>{caption}</figcaption></figure>'
    )


def _pieces(line: Iterable[tuple[float, float | None]], most: float) -> Iterator[str]:
    """The points of each polyline; a gap divides two, and a lone point is a short stroke."""
    piece: list[str] = []
    for ago_s, value in (*line, (0.0, None)):
        if value is None:
            if piece:
                yield " ".join(piece)
            piece = []
            continue
        x, y = _WIDTH * (1 - ago_s / HOUR_S), (_HEIGHT - 2) * (1 - value / most) + 1
        piece += [f"{x:.1f},{y:.1f}"] if piece else [f"{x - 1:.1f},{y:.1f}", f"{x:.1f},{y:.1f}"]


def _table(title: str, counts: Sums, none: str) -> str:
    """A row for each of the most frequent; without any, `none`, or nothing if that is empty."""
    found = sorted(((key, count) for key, count in counts.items() if count), key=lambda each: -each[1])
    rows = [(", ".join(filter(None, key)), count) for key, count in found]
    if not rows:
        return f"<section><h2>{title}</h2><p>{none}</p></section>" if none else ""
    lines = "".join(
        f"<tr><td>{_text(key)}</td><td>{count:.0f}</td></tr>" for key, count in rows[:_MOST_LINES]
    )
    more = f"<p><small>… and {len(rows) - _MOST_LINES} more</small></p>" if len(rows) > _MOST_LINES else ""
    return f"<section><h2>{title}</h2><table>{lines}</table>{more}</section>"
