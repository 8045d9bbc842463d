"""What clients have in memory is added up over the processes that are there."""

from __future__ import annotations

from streamcell.service.metrics.in_flight_metrics import MemoryFigures


def test_figures_of_all_processes_are_added_up_until_one_has_gone() -> None:
    figures = MemoryFigures()
    figures.here = lambda: (100, 1)
    figures.report("2", 50, 2)
    figures.report("3", 7, 0)
    figures.report("3", 8, 0)

    def values() -> dict[str, float]:
        return {family.name: family.samples[0].value for family in figures.collect()}

    assert values() == {"streamcell_in_flight_bytes": 158, "streamcell_connections_held_back": 3}
    figures.forget("2")
    assert values() == {"streamcell_in_flight_bytes": 108, "streamcell_connections_held_back": 1}
