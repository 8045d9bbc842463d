"""From a configuration to a model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from streamcell.models.errors import ConfigError
from streamcell.models.layers.bands import Blocks
from streamcell.models.layers.lags import Base

from .base import SequenceModel
from .convolutional import CNN, TCN
from .forecaster import Forecaster
from .listener import Listener
from .mlp import MLP
from .recurrent import GRU, LSTM, RNN
from .seq2seq import Seq2Seq

KINDS: dict[str, type[SequenceModel]] = {kind.kind: kind for kind in (MLP, RNN, LSTM, GRU, CNN, TCN, Seq2Seq)}


def build(config: Mapping[str, Any]) -> SequenceModel:
    """The model that `config` describes, freshly initialised: `build(model.config)` is the model's twin.

    Raises:
        ConfigError: "kind" is missing or unknown, a setting is missing, unknown or out of range.
    """
    settings = dict(config)
    forecast = settings.pop("forecast", None)
    if forecast is not None:
        return Forecaster(build(settings), Base.from_json(forecast))
    bands = settings.pop("bands", None)
    if bands is not None:
        return Listener(build(settings), Blocks.from_json(bands))
    kind = settings.pop("kind", None)
    if kind not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    model_type = KINDS[kind]
    known = _settings_of(model_type)
    if unknown := sorted(settings.keys() - known):
        raise ConfigError(f"{kind} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    if missing := sorted(name for name, required in known.items() if required and name not in settings):
        raise ConfigError(f"{kind} needs {', '.join(missing)}")
    return model_type(**settings)


# Constructor arguments that a subclass gives, not the configuration.
_INNER = ("self", "body_size", "settings")


def _settings_of(model_type: type[SequenceModel]) -> dict[str, bool]:
    """Name → whether it must be given, of a model's constructor and of the bases it hands the rest to."""
    settings: dict[str, bool] = {}
    for owner in reversed(model_type.mro()):
        if not issubclass(owner, SequenceModel) or "__init__" not in vars(owner):
            continue
        for name, parameter in inspect.signature(owner.__init__).parameters.items():
            if name in _INNER or parameter.kind is inspect.Parameter.VAR_KEYWORD:
                continue
            settings[name] = parameter.default is inspect.Parameter.empty
    return settings
