"""PyTorch models with explicit state, their training and their data sets."""

from .affine import Affine
from .base import SequenceModel
from .build import KINDS, build
from .errors import ConfigError, DataError, ModelError, RunError, ShapeError
from .layers import GRULayer, LSTMLayer, RecurrentLayer, RNNLayer
from .mlp import MLP, MLPBlock
from .recurrent import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "KINDS",
    "LSTM",
    "MLP",
    "RNN",
    "Affine",
    "ConfigError",
    "DataError",
    "GRULayer",
    "LSTMLayer",
    "MLPBlock",
    "ModelError",
    "RNNLayer",
    "RecurrentLayer",
    "RunError",
    "SequenceModel",
    "ShapeError",
    "build",
]
