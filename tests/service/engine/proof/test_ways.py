"""Each way in which the proof runs a model finds what no other way does: mutants without it let a model through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamcell.service.engine import proof, proof_values
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import load
from streamcell.service.repository.model_file import open_model
from streamcell.service.settings import Settings

from .models import CASES, save

_WAYS = proof._Proof._ways
# A way of running, and a model that is right in every other one.
NEEDED = {
    "one chunk": "far_ahead",
    "random chunks": "anew",
    "neighbours": "mean",
    "neighbours in chunks": "turned",
    "lengths": "ragged",
}
# A constant of the proof, what it is in the mutant, and a model that this lets through.
CONSTANTS: dict[str, tuple[Any, str]] = {
    "_ROWS": (1, "mean"),
    "_STEPS": (1, "reverse"),
    "_LOUD_STEP": (7, "late_quantised"),
    "_LOUD": (1.0, "quantised"),
    "_MANY_ROWS": (3, "fourth"),
    "_MANY_STEPS": (8, "late_mean"),
    "_TOLERANCE": ({"float32": 10.0}, "quantised"),
}


def restricted(folder: Path, name: str, quick: bool) -> set[str]:
    """The kinds of restriction that the model gets from the proof."""
    path = save(folder, name, *CASES[name].make())
    settings = Settings.load(models=folder, max_sessions=20, proof="quick" if quick else "full")
    model = load(open_model(path, name), settings, Device())
    model.runner.stop()
    return set(model.metrics.restricted)


def without(*names: str) -> Any:
    """The proof's ways, but for these."""

    def ways(self: Any, *arguments: Any) -> Iterator[Any]:
        return (way for way in _WAYS(self, *arguments) if way.name not in names)

    return ways


@pytest.mark.parametrize("way", NEEDED)
def test_a_proof_without_one_way_of_running_lets_a_model_through(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = NEEDED[way]
    assert restricted(tmp_path, name, quick=True) == CASES[name].kinds
    monkeypatch.setattr(proof._Proof, "_ways", without(way))
    assert restricted(tmp_path, name, quick=True) == set()


@pytest.mark.parametrize("constant", CONSTANTS)
def test_a_proof_with_fewer_rows_and_steps_or_less_loud_ones_lets_a_model_through(
    constant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, name = CONSTANTS[constant]
    quick = not CASES[name].full
    assert restricted(tmp_path, name, quick) == CASES[name].kinds
    monkeypatch.setattr(proof if hasattr(proof, constant) else proof_values, constant, value)
    assert restricted(tmp_path, name, quick) < CASES[name].kinds


def test_every_way_of_running_has_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    def ways(self: Any, *arguments: Any) -> Iterator[Any]:
        for way in _WAYS(self, *arguments):
            seen.add(way.name)
            yield way

    monkeypatch.setattr(proof._Proof, "_ways", ways)
    restricted(tmp_path, "ragged", quick=True)
    assert seen == set(NEEDED)
