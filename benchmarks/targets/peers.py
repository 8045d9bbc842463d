"""Other servers that the same load can be put on: `make bench PEER=NAME`, or `--peer NAME`.

A peer is a function from the folder of models, in which `lstm.onnx` is, to a context manager that starts the server
and gives its `Target`, whose `load` says how to talk to it: `{"dialect": "oip", **oip.border(address, model)}` for a
server of the Open Inference Protocol. It runs the cases with `open_to_peers`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeAlias

from streamcell.benchmarks.cases import Target

from .pytriton import pytriton
from .triton import Triton

Peer: TypeAlias = Callable[[Path], AbstractContextManager[Target]]

NAMES = ("pytriton", "triton")


def triton_options(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """The options that say where the parts of a Triton are."""
    group = parser.add_argument_group("a Triton of this machine, with its ONNX Runtime back end")
    group.add_argument(
        "--triton-server",
        type=Path,
        required=required,
        metavar="FILE",
        help="tritonserver, or a script that sets its libraries and ends in exec of it",
    )
    group.add_argument(
        "--triton-backends",
        type=Path,
        required=required,
        metavar="FOLDER",
        help="the folder of its back ends, with onnxruntime/libtriton_onnxruntime.so",
    )
    group.add_argument(
        "--perf-analyzer",
        type=Path,
        required=required,
        metavar="FILE",
        help="Triton's load generator, or a script that ends in exec of it: also compares both servers with it",
    )


def chosen(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> dict[str, Peer]:
    """The peers of `asked.peer` by name; ends the program if a part of one is not given."""
    found: dict[str, Peer] = {}
    for name in asked.peer:
        if name == "pytriton":
            found[name] = pytriton
        elif asked.triton_server is None or asked.triton_backends is None:
            parser.error("--peer triton needs --triton-server and --triton-backends")
        else:
            found[name] = Triton(asked.triton_server, asked.triton_backends)
    return found
