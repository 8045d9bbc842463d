"""A bad setting is told with its place, file and line, variable or flag, and with the nearest that there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamcell.cli.commands.server_settings import read_settings
from streamcell.service import Settings

Told = Callable[..., list[str]]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Told:
    """The lines that reading these settings ends with, without the command's name."""
    monkeypatch.chdir(tmp_path)

    def tell(
        text: str | None = None, *, environment: dict[str, str] | None = None, **flags: Any
    ) -> list[str]:
        file = Path("serve.toml")
        if text is not None:
            file.write_text(text)
        for name, value in (environment or {}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            read_settings("serve", file if text is not None else None, {"models": "m", **flags})
        assert ended.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert all(line.startswith("streamcell serve: ") for line in lines)
        return [line.removeprefix("streamcell serve: ") for line in lines]

    return tell


def test_a_key_that_there_is_not_is_told_with_its_line_and_the_nearest(told: Told) -> None:
    (line,) = told('port = 0\n\n# most\nmax_sesions = 5\nhost = "::"\n')
    assert line == (
        "serve.toml:4: max_sesions: there is no such setting; did you mean max_sessions?; streamcell serve --help "
        "lists them"
    )
    one, two = told('["server"]\nport = 0\n')[0], told("max-batch = 3\n")[0]
    assert one.startswith("serve.toml:1: server: there is no such setting")
    assert "did you mean max_batch?" in two


def test_a_value_that_cannot_be_is_told_with_its_line(told: Told) -> None:
    lines = told('port = "http"\nmax_batch = 0\nproof = "none"\n')
    assert [line.partition(" Input")[0] for line in lines] == [
        "serve.toml:1: port:", "serve.toml:2: max_batch:", "serve.toml:3: proof:",
    ]  # fmt: skip
    assert lines[0].endswith("got 'http'")
    assert "'off', 'quick' or 'full'" in lines[2]


@pytest.mark.parametrize(
    ("text", "place", "line"),
    [
        ("port = 0\nhost = localhost\n", 2, "in: host = localhost"),
        ("port = 0\n\nhost 127.0.0.1\n", 3, "in: host 127.0.0.1"),
        ("port = 1\nport = 2\n", 2, ""),
    ],
)
def test_a_line_that_is_no_toml_is_told_with_its_place_and_text(
    told: Told, text: str, place: int, line: str
) -> None:
    (found,) = told(text)
    assert found.startswith(f"serve.toml:{place}: not TOML: ")
    assert line in found
    assert "KEY = VALUE" in found


def test_a_file_that_is_no_text_or_not_there_is_named(told: Told, tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes("host = 'ö'".encode("latin-1"))
    assert "latin.toml: not TOML in UTF-8" in told(environment={"STREAMCELL_CONFIG": "latin.toml"})[0]
    assert "no configuration file at none.toml" in told(environment={"STREAMCELL_CONFIG": "none.toml"})[0]


def test_a_bad_variable_is_named(told: Told) -> None:
    (line,) = told(environment={"STREAMCELL_PORT": "http"})
    assert line.startswith("STREAMCELL_PORT: Input should be a valid integer")
    assert line.endswith("got 'http'")


def test_a_misspelled_variable_is_an_error_with_the_nearest(told: Told) -> None:
    assert told(environment={"STREAMCELL_MAX_SESIONS": "5"}) == [
        "STREAMCELL_MAX_SESIONS: there is no such setting; did you mean STREAMCELL_MAX_SESSIONS?"
    ]


def test_a_flag_and_a_lack_are_named(told: Told) -> None:
    assert told(port=70000)[0].startswith("--port: Input should be less than or equal to 65535")
    assert told(models=None) == [
        "models: it is not given: --models, STREAMCELL_MODELS, or models in the file"
    ]
    assert told(port=9000, metrics_port=9000) == ["port and metrics_port are both 9000: give them one each"]


def test_what_kubernetes_sets_for_a_service_is_known(
    told: Told, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    links = {
        "STREAMCELL_SERVICE_HOST": "10.0.0.1",
        "STREAMCELL_SERVICE_PORT_GRPC": "8500",
        "STREAMCELL_PORT_8500_TCP_ADDR": "10.0.0.1",
    }
    for name, value in links.items():
        monkeypatch.setenv(name, value)
    assert isinstance(read_settings("serve", None, {"models": "m"}), Settings)
    assert capsys.readouterr().err == ""
    (line,) = told(environment={"STREAMCELL_PORT": "tcp://10.0.0.1:8500"})
    assert "enableServiceLinks: false" in line


def test_other_variables_are_named_and_change_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAMCELL_TEAM", "speech")
    monkeypatch.setenv("STREAMCELL_TARGET", "localhost")
    assert read_settings("serve", None, {"models": "m"}).port == 8500
    assert capsys.readouterr().err == "streamcell serve: STREAMCELL_TEAM is no setting and changes nothing\n"


def test_an_address_may_stand_in_brackets() -> None:
    assert Settings.load(models="m", host="[::1]", metrics_host="[::]").host == "::1"
