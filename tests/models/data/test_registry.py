"""The data sets by name: what each can be told, and that training knows all of them."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from streamcell.models.data.registry import DATASETS, OPTIONAL, DataOptions, check_options
from streamcell.models.data.sequences import SequenceData
from streamcell.models.data.tables.options import TableOptions
from streamcell.models.errors import ConfigError
from streamcell.models.training import presets
from streamcell.models.training.measures import MEASURES

GIVEN = {
    "data": Path("file.csv"),
    "targets": ("load",),
    "table": TableOptions(gaps="forward"),
    "stress": True,
    "reverse": True,
    "aligned": True,
}


def test_a_data_set_refuses_exactly_the_options_that_are_not_its_own() -> None:
    assert GIVEN.keys() == OPTIONAL.keys()
    for name, dataset in DATASETS.items():
        for option, value in GIVEN.items():
            given = {option: value} | ({"data": Path("file.csv")} if dataset.needs_file else {})
            options = DataOptions(**given)  # type: ignore[arg-type]
            if option in dataset.takes:
                check_options(name, options)
            else:
                with pytest.raises(ConfigError, match=f"can only be given for .*; the data set is {name}"):
                    check_options(name, options)


def test_every_data_set_has_a_preset() -> None:
    for name in DATASETS:
        assert presets.config(name).dataset == name


def test_training_has_every_measure_that_a_data_set_may_name() -> None:
    measure = get_type_hints(SequenceData)["measure"]
    (names,) = (kind for kind in get_args(measure) if kind is not type(None))
    assert set(get_args(names)) == MEASURES.keys()
