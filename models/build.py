"""From a configuration to a model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from .base import SequenceModel
from .errors import ConfigError
from .mlp import MLP
from .recurrent import GRU, LSTM, RNN

KINDS: dict[str, type[SequenceModel]] = {kind.kind: kind for kind in (MLP, RNN, LSTM, GRU)}


def build(config: Mapping[str, Any]) -> SequenceModel:
    """The model that `config` describes, freshly initialised: `build(model.config)` is the model's twin.

    Raises:
        ConfigError: "kind" is missing or unknown, a setting is missing, unknown or out of range.
    """
    settings = dict(config)
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


def _settings_of(model_type: type[SequenceModel]) -> dict[str, bool]:
    """Name → whether it must be given, of a model's constructor and of the base it hands the rest to."""
    settings: dict[str, bool] = {}
    for owner in (SequenceModel, model_type):
        for name, parameter in inspect.signature(owner.__init__).parameters.items():
            if name in ("self", "body_size") or parameter.kind is inspect.Parameter.VAR_KEYWORD:
                continue
            settings[name] = parameter.default is inspect.Parameter.empty
    return settings
