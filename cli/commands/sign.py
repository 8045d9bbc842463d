"""`streamcell sign`: sign models, for servers that serve only signed ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_Argument, _Option = typer.Argument, typer.Option


def command(
    files: Annotated[list[Path], _Argument(help="Models: .onnx files, or TOML files of pipelines.")],
    key: Annotated[Path, _Option(help="PEM file of an Ed25519 private key.")],
    name: Annotated[
        str | None, _Option(help="Name to serve it under.  [the sidecar's, the file's or the folder's]")
    ] = None,
    model_version: Annotated[
        str | None, _Option(help="Version to serve it as.  [the folder's, or 1]", metavar="N")
    ] = None,
) -> None:
    """Write FILE.sig beside each model: its name, its version and the digests of all its files, signed.

    A server with --require-signature serves a model only under the name and version that it is signed for, and only
    from the bytes that were signed. Make a pair of keys with `openssl genpkey -algorithm ed25519 -out signing.key` and
    `openssl pkey -in signing.key -pubout -out signing.pub`; only the second file goes to the server.
    """
    from streamcell.service import ModelLoadError
    from streamcell.service.repository.locate import called, sidecar_path
    from streamcell.service.repository.model_file import open_model
    from streamcell.service.repository.signed import write_signature

    try:
        private = _read(key)
        for path in files:
            own_name, own_version = called(path)
            model = open_model(path, name or own_name, model_version or own_version)
            if name not in (None, model.name):
                raise ModelLoadError(f"its sidecar names it {model.name!r}; leave --name out", path)
            beside = sidecar_path(path)
            its = dict.fromkeys(each for each in model.watched if each != beside or each.exists())
            place = write_signature(path, its, model.name, model.version, private)
            typer.echo(f"{place}: {model.name} version {model.version}, {len(its)} files", err=True)
    except (ModelLoadError, OSError) as error:
        typer.echo(f"streamcell sign: {error}", err=True)
        raise typer.Exit(1) from None


def _read(path: Path) -> Ed25519PrivateKey:
    """The private key; asks for its passphrase if it has one."""
    from streamcell.service.repository.signed import read_private_key

    try:
        return read_private_key(path)
    except TypeError:  # it is encrypted
        passphrase = typer.prompt(f"Passphrase of {path.name}", hide_input=True, err=True)
        return read_private_key(path, passphrase.encode())
