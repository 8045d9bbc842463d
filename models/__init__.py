"""PyTorch models with explicit state, their training and their data sets."""

from streamcell.models.architectures.base import SequenceModel
from streamcell.models.architectures.build import KINDS, build
from streamcell.models.architectures.convolutional import CNN, TCN, Convolutional
from streamcell.models.architectures.mlp import MLP, MLPBlock
from streamcell.models.architectures.recurrent import GRU, LSTM, RNN, Recurrent
from streamcell.models.architectures.seq2seq import BOUNDARY, Seq2Seq
from streamcell.models.data.chorales import Chorales, chorales_data, load_chorales
from streamcell.models.data.csv_table import load_table
from streamcell.models.data.g2p import Dictionary, Pronunciation, Symbols, load_dictionary
from streamcell.models.data.g2p_series import pronounce
from streamcell.models.data.jsb import load_jsb
from streamcell.models.data.midi import write_midi
from streamcell.models.data.sequences import SequenceData, Series, Standard
from streamcell.models.layers.affine import Affine
from streamcell.models.layers.convolution import CausalConv
from streamcell.models.layers.recurrent import GRULayer, LSTMLayer, RecurrentLayer, RNNLayer
from streamcell.models.training import presets
from streamcell.models.training.config import TrainConfig
from streamcell.models.training.evaluation import Score, evaluate, score
from streamcell.models.training.g2p_metrics import count_errors
from streamcell.models.training.losses import bernoulli_nll
from streamcell.models.training.progress import RichProgress
from streamcell.models.training.run_folder import load_run
from streamcell.models.training.setup import load_data
from streamcell.models.training.train import TrainResult, train
from streamcell.models.training.trainer import DivergedError
from streamcell.models.training.watch import Progress, Report

from .errors import ConfigError, DataError, ModelError, RunError, ShapeError

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
