"""Configuration: flags win over the environment, the environment over the TOML file; mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from streamcell.service import Settings


def toml(folder: Path, text: str) -> Path:
    path = folder / "streamcell.toml"
    path.write_text(text)
    return path


def test_flags_win_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toml(tmp_path, 'models = "m"\nport = 1\nmax_batch = 1\nmax_chunk = 1\n')
    monkeypatch.setenv("STREAMCELL_PORT", "2")
    monkeypatch.setenv("STREAMCELL_MAX_BATCH", "2")
    settings = Settings.load(path, port=3, max_batch=None)
    assert (settings.port, settings.max_batch, settings.max_chunk) == (3, 2, 1)


def test_the_file_can_be_named_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMCELL_CONFIG", str(toml(tmp_path, 'models = "m"\nport = 7\n')))
    assert Settings.load().port == 7


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        Settings.load(tmp_path / "none.toml", models="m")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({}, "models"),
        ({"models": "m", "port": 70000}, "port"),
        ({"models": "m", "non_finite": "maybe"}, "non_finite"),
        ({"models": "m", "max_batch": 0}, "max_batch"),
        ({"models": "m", "watchdog_s": 1}, "watchdog_s"),
        ({"models": "m", "first_message_s": -1}, "first_message_s"),
        ({"models": "m", "tls_cert": "a.pem"}, "tls_cert and tls_key go together"),
        ({"models": "m", "load_model": ["a"]}, "load_model needs model_control = explicit"),
    ],
)
def test_what_is_wrong_is_named(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Settings.load(**flags)


def test_models_to_load_are_named_one_by_one_or_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    explicit = {"models": "m", "model_control": "explicit"}
    assert Settings.load(**explicit).load_model == ()
    assert Settings.load(**explicit, load_model=["a", "b"]).load_model == ("a", "b")
    monkeypatch.setenv("STREAMCELL_LOAD_MODEL", "a, b,*")
    assert Settings.load(**explicit).load_model == ("a", "b", "*")


@pytest.mark.parametrize(
    ("settings", "latest"),
    [
        ({}, False),
        ({"versions": "latest"}, True),
        ({"model_control": "poll"}, True),
        ({"model_control": "poll", "versions": "all"}, False),
    ],
)
def test_model_control_serves_the_latest_version_unless_told_otherwise(
    settings: dict[str, Any], latest: bool
) -> None:
    assert Settings.load(models="m", **settings).latest_only is latest


def test_an_unknown_key_in_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="max_bach"):
        Settings.load(toml(tmp_path, 'models = "m"\nmax_bach = 3\n'))


def test_the_metrics_port_has_a_certificate_of_its_own_or_the_grpc_port_s() -> None:
    grpc_pair = {"tls_cert": Path("a"), "tls_key": Path("b")}
    own = {"metrics_tls_cert": Path("c"), "metrics_tls_key": Path("d")}
    for given, pair in (
        ({}, None),
        (grpc_pair, None),
        ({**grpc_pair, "metrics_tls": True}, (Path("a"), Path("b"))),
        ({**grpc_pair, **own}, (Path("c"), Path("d"))),
        ({**own, "metrics_tls": True}, (Path("c"), Path("d"))),
    ):
        assert Settings(models=Path("m"), **given).metrics_pair == pair
    for wrong in ({"metrics_tls": True}, {"metrics_tls_cert": Path("c")}, {"metrics_tls_key": Path("d")}):
        with pytest.raises(ValidationError, match="metrics_tls"):
            Settings(models=Path("m"), **wrong)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"durability": "store-async"}, "store-async needs store"),
        ({"store": "valkey://h:1"}, "store needs durability"),
        ({"store_key_file": "k"}, "store_key_file needs store"),
        ({"store": "valkey://h:1", "durability": "store-sync", "frontends": 2}, "store needs frontends = 0"),
        ({"store": "valkey://h:1", "durability": "store-sync", "linger_s": 0}, "store needs linger_s > 0"),
        ({"store": "valkey://h:1", "durability": "store-sync", "lease_s": 0.1}, "lease_s"),
    ],
)
def test_a_store_and_what_does_not_go_with_it(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Settings.load(models="m", **flags)
