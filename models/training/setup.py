"""What a configuration names: its data set and its untrained model."""

from __future__ import annotations

from dataclasses import replace

import torch

from streamcell.models.architectures.base import SequenceModel
from streamcell.models.architectures.build import build
from streamcell.models.architectures.seq2seq import Seq2Seq
from streamcell.models.data.registry import DATASETS
from streamcell.models.data.sequences import SequenceData
from streamcell.models.errors import ConfigError

from .config import TrainConfig
from .forecast_base import choose_base, make_forecaster
from .listening import make_listener
from .progress import Progress


def load_data(config: TrainConfig, progress: Progress | None = None) -> SequenceData:
    """The data set that `config` names.

    Raises:
        ConfigError: `config` does not fit the data set.
        DataError: it cannot be read.
    """
    options = replace(config.data_options, on_parsed=progress.parsed if progress else None)
    data = DATASETS[config.dataset].load(options)
    if config.quantiles:
        names = [f"{name} {level:g}" for name in data.about["targets"] for level in config.quantiles]
        return replace(
            data,
            distribution="quantiles",
            quantiles=config.quantiles,
            about={**data.about, "quantiles": list(config.quantiles), "outputs": names},
        )
    return data


def make_model(config: TrainConfig, data: SequenceData) -> SequenceModel:
    """The untrained model for `data`, its standardisation baked in, from the run's seed.

    Raises:
        ConfigError: the model's settings do not go together.
    """
    torch.manual_seed(config.seed)
    base = choose_base(config, data) if data.targets else None
    if base is not None:
        return make_forecaster(config, data, base).to(config.torch_device())
    if data.sample_rate:
        return make_listener(config, data).to(config.torch_device())
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
        levels = max(1, len(data.quantiles))
        moments = map(torch.from_numpy, (data.output_standard.mean, data.output_standard.std))
        model.output_affine.restore(*(each.repeat_interleave(levels) for each in moments))
    return model.to(config.torch_device())
