"""What a forecast starts from: the formulas, and that a session may begin, pause and go on anywhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from streamcell.models import ConfigError, Forecaster, build
from streamcell.models.layers.lags import BASES, Base, Lags

SEASON = 4


def settings(base: str, **more: Any) -> Base:
    return Base(3, (2, 0), base, SEASON if "season" in base else 0, **more)


def by_hand(own: Base, x: np.ndarray, floor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features and bases of x [time, columns], step by step, by the table in the module's head."""
    z = x[:, list(own.targets)]
    z = np.log(np.maximum(z, floor)) if own.log else z
    features, bases = [], []
    for t, now in enumerate(z):

        def lag(steps: int, t: int = t) -> np.ndarray | None:
            return z[t - steps] if t >= steps else None

        seen, base, move = now, now, np.zeros_like(now)
        if own.differs:
            before = lag(1)
            seen = np.zeros_like(now) if before is None else now - before
        if own.seasonal:
            season, ahead, earlier = lag(own.season), lag(own.season - 1), lag(own.season + 1)
            if season is not None:
                move = ahead - season  # type: ignore[operator]
            if own.differs:
                seen = seen if earlier is None else seen - (season - earlier)  # type: ignore[operator]
                base = now + move
            else:
                seen = np.zeros_like(now) if season is None else now - season
                base = now if ahead is None else ahead
        others = x[t, list(own.others)]
        features.append(np.concatenate([others, seen, *([move] if own.seasonal else [])]))
        bases.append(base)
    return np.array(features), np.array(bases)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_the_formulas_are_the_tables(base: str, log: bool) -> None:
    own = settings(base, log=log)
    x = np.random.default_rng(0).uniform(0.5, 9, (17, 3))
    lags = Lags(own).double()
    recent = torch.zeros(1, *lags.state_shape, dtype=torch.float64) if own.history else None
    features, start, whole = lags(torch.from_numpy(x)[None], recent)
    wanted_features, wanted_base = by_hand(own, x)
    np.testing.assert_allclose(features[0], wanted_features, atol=1e-12)
    np.testing.assert_allclose(start[0], wanted_base, atol=1e-12)
    assert features.shape[2] == own.features
    assert whole.shape[1] == 17 + own.history


def test_a_model_that_says_nothing_forecasts_the_base() -> None:
    x = torch.arange(20.0)[None, :, None]
    for base, wanted in (("change", x), ("season", x - 3), ("difference+season", x + 1)):
        own = Base(1, (0,), base, SEASON if "season" in base else 0)
        inner = build({"kind": "mlp", "hidden_sizes": [], "input_size": own.features, "output_size": 1})
        torch.nn.init.zeros_(inner.head.weight)
        torch.nn.init.zeros_(inner.head.bias)
        y, *_ = Forecaster(inner, own)(x)
        torch.testing.assert_close(y[:, SEASON:], wanted[:, SEASON:])


@pytest.mark.parametrize("kind", ["lstm", "tcn", "mlp"])
def test_pieces_and_rows_of_other_lengths_give_what_the_whole_gives(kind: str) -> None:
    own = settings("difference+season", log=True, levels=2)
    sizes: dict[str, Any] = {
        "lstm": {"hidden_size": 5, "num_layers": 2},
        "tcn": {"channels": [4]},
        "mlp": {"hidden_sizes": [4]},
    }[kind]
    torch.manual_seed(0)
    model = build(
        {"kind": kind, **sizes, "input_size": own.features, "output_size": 4, "forecast": own.to_json()}
    ).eval()
    assert isinstance(model, Forecaster)
    x = torch.rand(3, 12, 3) * 8 + 1
    whole, *last = model(x)
    state: tuple[torch.Tensor, ...] = ()
    pieces = []
    for piece in x.split([1, 4, 2, 5], dim=1):
        y, *state = model(piece, *state)  # type: ignore[assignment]
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    lengths = torch.tensor([12, 3, 0])
    y, *after = model(x, lengths=lengths)
    short, *short_after = model(x[1:2, :3])
    torch.testing.assert_close(y[1:2, :3], short)
    assert not y[1, 3:].any()
    for all_rows, one, full, first in zip(after, short_after, last, model.initial_state(3), strict=True):
        axis = model.state_axis
        torch.testing.assert_close(all_rows.narrow(axis, 1, 1), one)
        torch.testing.assert_close(all_rows.narrow(axis, 0, 1), full.narrow(axis, 0, 1))
        torch.testing.assert_close(all_rows.narrow(axis, 2, 1), first.narrow(axis, 2, 1))


def test_a_twin_is_built_from_the_configuration() -> None:
    own = settings("season")
    inner = build({"kind": "gru", "hidden_size": 4, "input_size": own.features, "output_size": 2})
    model = Forecaster(inner, own)
    twin = build(model.config)
    assert twin.config == model.config
    twin.load_state_dict(model.state_dict())
    assert twin.state_names == ("h", "recent")
    x = torch.rand(2, 7, 3)
    torch.testing.assert_close(twin(x)[0], model(x)[0])


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="a base of season and a season of 0 steps do not go together"):
        Lags(dataclasses.replace(settings("season"), season=0))
    with pytest.raises(ConfigError, match="base must be one of value, change"):
        Lags(settings("guess"))
    inner = build({"kind": "gru", "hidden_size": 4, "input_size": 3, "output_size": 2})
    with pytest.raises(ConfigError, match="must take 5 features; it takes 3"):
        Forecaster(inner, settings("season"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": [3]},
        {"targets": [-1]},
        {"targets": []},
        {"targets": 1},
        {"levels": 0},
        {"season": "x"},
        {"more": 1},
    ],
)
def test_a_run_folder_with_other_settings_of_a_base_is_an_error(wrong: dict[str, Any]) -> None:
    config = {"kind": "gru", "hidden_size": 4, "input_size": 3, "output_size": 2}
    good = settings("change").to_json()
    assert isinstance(build({**config, "forecast": good}), Forecaster)
    with pytest.raises(ConfigError):
        build({**config, "forecast": {**good, **wrong}})
    for name in ("targets", "columns"):
        with pytest.raises(ConfigError, match=name):
            build({**config, "forecast": {key: value for key, value in good.items() if key != name}})
