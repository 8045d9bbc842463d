"""Makes the page of metrics once for all requests that wait for one, without holding the GIL for long.

A page is never older than the request that it answers. A request that arrives while a page is being made waits for
the next one, which is made after a pause. So making pages takes a bounded part of one core for any number of scrapers.
"""

from __future__ import annotations

import gzip
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

# Pages take at most a tenth of one core, but no request waits for longer than half a second.
_PAUSE_RATIO, _LEAST_PAUSE_S, _MOST_PAUSE_S = 9.0, 0.1, 0.5
_SLICE_S = 0.0005  # of work; a pause of the same length lets other threads run
_SLICE_SAMPLES = 100
_EOF = b"# EOF\n"
_Page = TypeVar("_Page")
_VERSION = re.compile(r"version=(0\.0\.4|1\.0\.0|2\.0\.0);")


class Slices:
    """Divides work into slices: sleeps for as long as the thread worked since its last sleep."""

    def __init__(self) -> None:
        self._since_s = time.perf_counter()

    def between(self) -> None:
        """Sleep if a slice is over; called between two pieces of work."""
        worked_s = time.perf_counter() - self._since_s
        if worked_s > _SLICE_S:
            time.sleep(worked_s)
            self._since_s = time.perf_counter()


class _Held(Collector):
    """A collector of one family that has been collected already."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        """The family."""
        return (self._family,)


class Snapshot:
    """All families as they were at one time, and the pages made of them."""

    def __init__(self, families: Iterable[Metric], began_s: float) -> None:
        self.began_s = began_s
        self._families: list[Metric] = []
        slices = Slices()
        for family in families:
            self._families.append(family)
            slices.between()
        self._pages: dict[tuple[str, bool], bytes] = {}
        self._lock = threading.Lock()

    @property
    def families(self) -> Sequence[Metric]:
        """All of them, to be read only."""
        return self._families

    def page(self, accept: str, names: Sequence[str], zipped: bool) -> tuple[str, bytes]:
        """Return the content type and the page.

        Args:
            accept: HTTP's `Accept` header.
            names: names of the samples to include; empty: all.
            zipped: True to compress the page with gzip.
        """
        encode, kind = _encoder(accept)
        with self._lock:
            if names:
                return kind, _zipped(b"".join(_encoded(encode, self._named(frozenset(names)))), zipped)
            plain = self._pages.get((kind, False))
            if plain is None:
                plain = self._pages[kind, False] = b"".join(_encoded(encode, self._families))
            page = self._pages.get((kind, zipped))
            if page is None:
                page = self._pages[kind, zipped] = _zipped(plain, zipped)
            return kind, page

    def _named(self, names: Set[str]) -> Iterator[Metric]:
        for family in self._families:
            samples = [sample for sample in family.samples if sample.name in names]
            if samples:
                yield _part(family, samples)


class Pages:
    """Makes pages of a registry's metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._turn = threading.Condition()
        self._latest: Snapshot | None = None
        self._making = False
        self._free_s = 0.0  # when the next snapshot may begin

    def page(self, since_s: float, accept: str, names: Sequence[str], zipped: bool) -> tuple[str, bytes]:
        """Like `Snapshot.page`, of figures read at `since_s` (by `time.monotonic`) or later."""
        return self._made(since_s, lambda snapshot: snapshot.page(accept, names, zipped))

    def other(self, since_s: float, make: Callable[[Sequence[Metric]], bytes]) -> bytes:
        """Another page, which `make` makes of all families, read at `since_s` or later."""
        return self._made(since_s, lambda snapshot: make(snapshot.families))

    def families(self, since_s: float) -> Sequence[Metric]:
        """All families, read at `since_s` (by `time.monotonic`) or later."""
        return self._snapshot(since_s).families

    def _made(self, since_s: float, make: Callable[[Snapshot], _Page]) -> _Page:
        snapshot = self._snapshot(since_s)
        began_s = time.monotonic()
        try:
            return make(snapshot)
        finally:
            self._spent(began_s)

    def _snapshot(self, since_s: float) -> Snapshot:
        with self._turn:
            while True:
                latest = self._latest
                if latest is not None and latest.began_s >= since_s:
                    return latest
                if not self._making:
                    self._making = True
                    break
                self._turn.wait()
        made = None
        try:
            time.sleep(max(0.0, self._free_s - time.monotonic()))
            began_s = time.monotonic()
            made = Snapshot(self._registry.collect(), began_s)
            self._spent(began_s, _LEAST_PAUSE_S)
            return made
        finally:
            with self._turn:
                self._latest = made or self._latest
                self._making = False
                self._turn.notify_all()

    def _spent(self, began_s: float, least_s: float = 0.0) -> None:
        """Plan a pause in proportion to the work done from `began_s` until now."""
        now_s = time.monotonic()
        pause_s = min(max(least_s, _PAUSE_RATIO * (now_s - began_s)), _MOST_PAUSE_S)
        self._free_s = max(self._free_s, now_s + pause_s)


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """prometheus_client's choice for the header; the default format for a version that it does not know."""
    try:
        encode, kind = choose_encoder(accept)
    except TypeError:
        return choose_encoder("")
    return (encode, kind) if _VERSION.search(kind) else choose_encoder("")


def _encoded(encode: Callable[[Collector], bytes], families: Iterable[Metric]) -> Iterator[bytes]:
    """The page in parts; a large family makes several."""
    slices = Slices()
    end = b""
    for family in families:
        for part, first in _parts(family):
            text = encode(_Held(part))
            if text.endswith(_EOF):
                text, end = text.removesuffix(_EOF), _EOF
            if not first:
                text = re.sub(rb"\A(?:# [^\n]*\n)+", b"", text)
            yield text
            slices.between()
    yield end


def _parts(family: Metric) -> Iterator[tuple[Metric, bool]]:
    """`family` in parts of a bounded number of samples, each with True if it is the first."""
    samples = family.samples
    if len(samples) <= _SLICE_SAMPLES:
        yield family, True
        return
    for at in range(0, len(samples), _SLICE_SAMPLES):
        yield _part(family, samples[at : at + _SLICE_SAMPLES]), not at


def _part(family: Metric, samples: list[Sample]) -> Metric:
    """`family` with only `samples`."""
    part = Metric(family.name, family.documentation, "unknown", family.unit)
    part.type = family.type  # may be a type that prometheus_client's constructor refuses
    part.samples = samples
    return part


def _zipped(page: bytes, zipped: bool) -> bytes:
    return gzip.compress(page, compresslevel=5, mtime=0) if zipped else page
