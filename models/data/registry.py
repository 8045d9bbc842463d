"""The data sets by name, with their options."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from streamcell.models.checks import choose
from streamcell.models.errors import ConfigError

from .chorales import chorales_data, load_chorales
from .csv_table import load_table
from .digits import load_digits
from .g2p import Symbols, aligned_data, g2p_data, load_dictionary
from .harmony import load_harmony
from .jsb import load_jsb
from .parallel import OnParsed
from .sequences import SequenceData
from .tables.options import FOUND, TableOptions
from .voice import load_voice
from .vowels import load_vowels


@dataclass(frozen=True)
class DataOptions:
    """What the configuration of a run says about its data.

    Attributes:
        data: a file to read instead of the data that a package brings.
        data_folder: where parsed corpora are cached.
        targets: CSV columns to forecast; () for all.
        stress: whether phonemes carry their stress.
        reverse: whether a word's letters go in last letter first.
        aligned: whether a symbol is what one letter says, not one phoneme.
        table: how to read a CSV file.
        on_parsed: called with the number of parsed files.
    """

    data: Path | None = None
    data_folder: Path = Path("data")
    targets: tuple[str, ...] = ()
    stress: bool = False
    reverse: bool = False
    aligned: bool = False
    table: TableOptions = FOUND
    on_parsed: OnParsed | None = None


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes:
        load: reads it; raises DataError if it cannot.
        takes: the options of `OPTIONAL` that it knows.
        needs_file: whether there is no data without `data`.
    """

    load: Callable[[DataOptions], SequenceData]
    takes: Collection[str] = ()
    needs_file: bool = False


# Options that only some data sets take, each with the words that an error calls it by.
OPTIONAL = {
    "data": "a data file",
    "targets": "target columns",
    "table": "how a CSV file is read",
    "stress": "stress",
    "reverse": "reverse",
    "aligned": "a stack",
}


def check_options(dataset: str, options: DataOptions) -> None:
    """Raise ConfigError if there is no such data set, if an option is not one of its own or if its file is missing."""
    chosen = DATASETS[choose("dataset", dataset, tuple(DATASETS))]
    for option, words in OPTIONAL.items():
        if getattr(options, option) != getattr(DataOptions, option) and option not in chosen.takes:
            takers = " or ".join(name for name, other in DATASETS.items() if option in other.takes)
            raise ConfigError(f"{words} can only be given for {takers}; the data set is {dataset}")
    options.table.check()
    if chosen.needs_file and options.data is None:
        raise ConfigError(f"the {dataset} data set needs a file: --data FILE.{dataset}")


def _chorales(options: DataOptions) -> SequenceData:
    if options.data is not None:
        return load_jsb(options.data)
    return chorales_data(load_chorales(options.data_folder, options.on_parsed))


def _g2p(options: DataOptions) -> SequenceData:
    symbols = Symbols(stress=options.stress, reverse=options.reverse)
    if options.aligned and not options.reverse:
        raise ConfigError("a stack gives back first what was read last: it needs letters in reverse order")
    return (aligned_data if options.aligned else g2p_data)(load_dictionary(stress=options.stress), symbols)


def _csv(options: DataOptions) -> SequenceData:
    if options.data is None:
        raise ConfigError("the csv data set needs a file: --data FILE.csv")
    return load_table(options.data, options.targets, options.table)


DATASETS = {
    "chorales": Dataset(_chorales, takes={"data"}),
    "harmony": Dataset(lambda options: load_harmony(options.data_folder, options.on_parsed)),
    "vowels": Dataset(lambda options: load_vowels()),
    "voice": Dataset(lambda options: load_voice()),
    "digits": Dataset(lambda options: load_digits()),
    "g2p": Dataset(_g2p, takes={"stress", "reverse", "aligned"}),
    "csv": Dataset(_csv, takes={"data", "targets", "table"}, needs_file=True),
}
