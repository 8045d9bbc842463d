"""PyTorch models with explicit state, their training and their data sets.

Names are imported when they are first used, so that `streamcell.models.data` can be imported without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .errors import ConfigError, DataError, ModelError, RunError, ShapeError

if TYPE_CHECKING:
    from streamcell.models.architectures.base import SequenceModel
    from streamcell.models.architectures.build import KINDS, build
    from streamcell.models.architectures.convolutional import CNN, TCN, Convolutional
    from streamcell.models.architectures.forecaster import Forecaster
    from streamcell.models.architectures.listener import Listener
    from streamcell.models.architectures.mlp import MLP, MLPBlock
    from streamcell.models.architectures.recurrent import GRU, LSTM, RNN, Recurrent
    from streamcell.models.architectures.seq2seq import BOUNDARY, Seq2Seq
    from streamcell.models.architectures.wrapped import Wrapped
    from streamcell.models.data.chorales import Chorales, chorales_data, load_chorales
    from streamcell.models.data.csv_table import load_table
    from streamcell.models.data.g2p import Dictionary, Pronunciation, Symbols, load_dictionary
    from streamcell.models.data.jsb import load_jsb
    from streamcell.models.data.midi import write_midi
    from streamcell.models.data.sequences import SequenceData, Series, Standard
    from streamcell.models.layers.affine import Affine
    from streamcell.models.layers.convolution import CausalConv
    from streamcell.models.layers.recurrent import GRULayer, LSTMLayer, RecurrentLayer, RNNLayer
    from streamcell.models.training import presets
    from streamcell.models.training.config import TrainConfig
    from streamcell.models.training.evaluation import Score, evaluate, score, score_of
    from streamcell.models.training.g2p_evaluation import count_errors, pronounce
    from streamcell.models.training.losses import LOSS_NAMES, bernoulli_nll
    from streamcell.models.training.progress import Progress, Report, RichProgress
    from streamcell.models.training.run_folder import load_run
    from streamcell.models.training.setup import load_data
    from streamcell.models.training.train import TrainResult, train
    from streamcell.models.training.trainer import DivergedError

__all__ = [
    "BOUNDARY",
    "CNN",
    "GRU",
    "KINDS",
    "LOSS_NAMES",
    "LSTM",
    "MLP",
    "RNN",
    "TCN",
    "Affine",
    "CausalConv",
    "Chorales",
    "ConfigError",
    "Convolutional",
    "DataError",
    "Dictionary",
    "DivergedError",
    "Forecaster",
    "GRULayer",
    "LSTMLayer",
    "Listener",
    "MLPBlock",
    "ModelError",
    "Progress",
    "Pronunciation",
    "RNNLayer",
    "Recurrent",
    "RecurrentLayer",
    "Report",
    "RichProgress",
    "RunError",
    "Score",
    "Seq2Seq",
    "SequenceData",
    "SequenceModel",
    "Series",
    "ShapeError",
    "Standard",
    "Symbols",
    "TrainConfig",
    "TrainResult",
    "Wrapped",
    "bernoulli_nll",
    "build",
    "chorales_data",
    "count_errors",
    "evaluate",
    "load_chorales",
    "load_data",
    "load_dictionary",
    "load_jsb",
    "load_run",
    "load_table",
    "presets",
    "pronounce",
    "score",
    "score_of",
    "train",
    "write_midi",
]

# The module that defines each name of `__all__`, but for the errors and `presets`, which is a module itself.
_NAMES = {
    "architectures.base": "SequenceModel",
    "architectures.build": "KINDS build",
    "architectures.convolutional": "CNN TCN Convolutional",
    "architectures.forecaster": "Forecaster",
    "architectures.listener": "Listener",
    "architectures.mlp": "MLP MLPBlock",
    "architectures.recurrent": "GRU LSTM RNN Recurrent",
    "architectures.seq2seq": "BOUNDARY Seq2Seq",
    "architectures.wrapped": "Wrapped",
    "data.chorales": "Chorales chorales_data load_chorales",
    "data.csv_table": "load_table",
    "data.g2p": "Dictionary Pronunciation Symbols load_dictionary",
    "data.jsb": "load_jsb",
    "data.midi": "write_midi",
    "data.sequences": "SequenceData Series Standard",
    "layers.affine": "Affine",
    "layers.convolution": "CausalConv",
    "layers.recurrent": "GRULayer LSTMLayer RecurrentLayer RNNLayer",
    "training.config": "TrainConfig",
    "training.evaluation": "Score evaluate score score_of",
    "training.g2p_evaluation": "count_errors pronounce",
    "training.losses": "LOSS_NAMES bernoulli_nll",
    "training.progress": "Progress Report RichProgress",
    "training.run_folder": "load_run",
    "training.setup": "load_data",
    "training.train": "TrainResult train",
    "training.trainer": "DivergedError",
}


_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name == "presets":
        return importlib.import_module(".training.presets", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
