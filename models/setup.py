"""What a configuration names: its data set and its untrained model."""

from __future__ import annotations

import torch

from .base import SequenceModel
from .build import build
from .chorales import chorales_data, load_chorales
from .config import TrainConfig
from .digits import load_digits
from .errors import ConfigError
from .g2p import Symbols, load_dictionary
from .g2p_data import g2p_data
from .harmony import load_harmony
from .jsb import load_jsb
from .seq2seq import Seq2Seq
from .sequences import SequenceData
from .table import load_table
from .vowels import load_vowels
from .watch import Progress


def load_data(config: TrainConfig, progress: Progress | None = None) -> SequenceData:
    """The data set that `config` names.

    Raises:
        DataError: it cannot be read.
    """
    parsed = progress.parsed if progress else None
    if config.dataset == "csv":
        if config.data is None:
            raise ConfigError("the csv data set needs a file: --data FILE.csv")
        return load_table(config.data, config.targets)
    if config.dataset == "vowels":
        return load_vowels()
    if config.dataset == "digits":
        return load_digits()
    if config.dataset == "g2p":
        symbols = Symbols(stress=config.stress, reverse=config.reverse)
        return g2p_data(load_dictionary(stress=config.stress), symbols)
    if config.dataset == "harmony":
        return load_harmony(config.data_folder, parsed)
    if config.data is not None:
        return load_jsb(config.data)
    return chorales_data(load_chorales(config.data_folder, parsed))


def make_model(config: TrainConfig, data: SequenceData) -> SequenceModel:
    """The untrained model for `data`, its standardisation baked in, from the run's seed.

    Raises:
        ConfigError: the model's settings do not go together.
    """
    torch.manual_seed(config.seed)
    model = build(
        {
            **config.model,
            "input_size": data.input_size,
            "output_size": data.output_size,
            "distribution": data.distribution,
            "input_affine": data.input_standard is not None,
            "output_affine": data.output_standard is not None,
        }
    )
    if isinstance(model, Seq2Seq) != (data.tokens is not None):
        takes = "tokens" if isinstance(model, Seq2Seq) else "vectors"
        gives = "vectors" if data.tokens is None else "tokens"
        raise ConfigError(f"a model of kind {model.kind} takes {takes}; {data.name} gives {gives}")
    if model.input_affine is not None and data.input_standard is not None:
        model.input_affine.standardise(
            *map(torch.from_numpy, (data.input_standard.mean, data.input_standard.std))
        )
    if model.output_affine is not None and data.output_standard is not None:
        model.output_affine.restore(
            *map(torch.from_numpy, (data.output_standard.mean, data.output_standard.std))
        )
    return model.to(config.torch_device())
