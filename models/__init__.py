"""PyTorch models with explicit state, their training and their data sets."""

from . import presets
from .affine import Affine
from .base import SequenceModel
from .build import KINDS, build
from .chorales import Chorales, chorales_data, load_chorales
from .config import TrainConfig
from .convolution import CausalConv
from .convolutional import CNN, TCN, Convolutional
from .errors import ConfigError, DataError, ModelError, RunError, ShapeError
from .evaluation import Score, evaluate, score
from .g2p import Dictionary, Pronunciation, Symbols, load_dictionary
from .g2p_data import pronounce
from .g2p_metrics import count_errors
from .jsb import load_jsb
from .layers import GRULayer, LSTMLayer, RecurrentLayer, RNNLayer
from .losses import bernoulli_nll
from .midi import write_midi
from .mlp import MLP, MLPBlock
from .progress import RichProgress
from .recurrent import GRU, LSTM, RNN, Recurrent
from .runs import load_run
from .seq2seq import BOUNDARY, Seq2Seq
from .sequences import SequenceData, Series, Standard
from .setup import load_data
from .table import load_table
from .trainer import DivergedError
from .training import TrainResult, train
from .watch import Progress, Report

__all__ = [
    "BOUNDARY",
    "CNN",
    "GRU",
    "KINDS",
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
    "GRULayer",
    "LSTMLayer",
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
    "train",
    "write_midi",
]
