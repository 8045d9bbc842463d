"""`streamcell token` makes a token that a server knows by the lines behind it, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamcell.cli import app
from streamcell.service.access.access_errors import AccessConfigError
from streamcell.service.access.identity import Identity
from streamcell.service.access.static_tokens import StaticTokens


def test_a_token_is_for_an_operator_or_for_metrics_alone(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["token", "bank", "prometheus", "--metrics"])
    token, _, lines = made.stdout.partition("\n")
    path = tmp_path / "tokens.toml"
    path.write_text(lines)
    assert StaticTokens(path).for_metrics(token)
    assert not StaticTokens(path).for_metrics("another")
    assert CliRunner().invoke(app, ["token", "bank", "ops", "--metrics", "--operator"]).exit_code == 2
    path.write_text(lines + "operator = true\n")
    with pytest.raises(AccessConfigError, match="'prometheus' has operator and metrics"):
        StaticTokens(path)


@pytest.mark.parametrize("operator", [False, True])
def test_the_lines_let_a_server_know_the_token_and_do_not_have_it(tmp_path: Path, operator: bool) -> None:
    flags = ["--operator"] if operator else []
    made = CliRunner().invoke(app, ["token", 'ac"me', "feed-1", *flags])
    assert made.exit_code == 0
    token, _, lines = made.stdout.partition("\n")
    assert len(token) >= 43
    assert token not in lines
    path = tmp_path / "tokens.toml"
    path.write_text(lines)
    assert StaticTokens(path).find(token) == Identity('ac"me', "feed-1", operator)
    again = CliRunner().invoke(app, ["token", 'ac"me', "feed-1"])
    assert again.stdout.partition("\n")[0] != token
