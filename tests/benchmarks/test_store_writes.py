"""The store's benchmark at a small size: each kind is measured, and its figures are of what it wrote."""

from __future__ import annotations

from streamcell.benchmarks.store_writes import KINDS, measure, table


def test_every_kind_has_its_figures() -> None:
    lines = measure([2], rounds=1, times=2, state_bytes=64)
    assert [line.kind for line in lines] == list(KINDS)
    for line in lines:
        assert len(line.valkey_us) == len(line.replica_us) == len(line.call_ms) == 1
        assert min(line.valkey_us + line.replica_us + line.call_ms) > 0
    assert table(lines).count("\n") == 1 + len(KINDS)
