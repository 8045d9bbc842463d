"""Other servers that the same load can be put on: `make bench PEER=NAME`, or `--peer NAME`.

A peer is a function from the folder of models, in which `lstm.onnx` is, to a context manager that starts the server
and gives its `Target`, whose `load` says how to talk to it: `{"dialect": "oip", **oip.border(address, model)}` for a
server of the Open Inference Protocol. It runs the cases with `open_to_peers`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeAlias

from streamcell.benchmarks.cases import Target

from .pytriton import pytriton

Peer: TypeAlias = Callable[[Path], AbstractContextManager[Target]]

PEERS: dict[str, Peer] = {"pytriton": pytriton}
