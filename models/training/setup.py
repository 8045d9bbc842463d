"""What a configuration names: its data set and its untrained model."""

from __future__ import annotations

import torch

from streamcell.models.architectures.base import SequenceModel
from streamcell.models.architectures.build import build
from streamcell.models.architectures.seq2seq import Seq2Seq
from streamcell.models.data.chorales import chorales_data, load_chorales
from streamcell.models.data.csv_table import load_table
from streamcell.models.data.digits import load_digits
from streamcell.models.data.g2p import Symbols, load_dictionary
from streamcell.models.data.g2p_series import g2p_data
from streamcell.models.data.harmony import load_harmony
from streamcell.models.data.jsb import load_jsb
from streamcell.models.data.sequences import SequenceData
from streamcell.models.data.vowels import load_vowels
from streamcell.models.errors import ConfigError

from .config import TrainConfig
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
