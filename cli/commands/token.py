"""`streamcell token`: make a bearer token, and the lines that let a server know it."""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Annotated

import typer


def command(
    tenant: Annotated[str, typer.Argument(help="Whose sessions and quotas calls with the token use.")],
    subject: Annotated[str, typer.Argument(help="Who calls with it, for logs and the policy file.")],
    operator: Annotated[
        bool, typer.Option("--operator", help="Who has it may see and end everything, and load models.")
    ] = False,
    metrics: Annotated[
        bool,
        typer.Option("--metrics", help="Who has it may see the metrics port's pages, and do nothing else."),
    ] = False,
) -> None:
    """Make a token.

    The first line is the token, for the client. The others go into the server's --token-file: a hash, from which nobody
    gets the token back.
    """
    if operator and metrics:
        raise typer.BadParameter("an operator sees the metrics anyhow: give one of --operator and --metrics")
    token = secrets.token_urlsafe(32)
    typer.echo(token)
    typer.echo("\n[[tokens]]")
    typer.echo(f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"')
    # A JSON text is a TOML text.
    typer.echo(f"tenant = {json.dumps(tenant)}\nsubject = {json.dumps(subject)}")
    if operator:
        typer.echo("operator = true")
    if metrics:
        typer.echo("metrics = true")
