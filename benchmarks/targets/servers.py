"""The servers of a run of `make bench`: ours, the yardsticks, the engine alone, peers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from streamcell.benchmarks.cases import AIO, ENGINE, FRONTENDS, LANE, OIP, OURS, Target
from streamcell.benchmarks.load.main import run_load
from streamcell.benchmarks.load.oip import border
from streamcell.benchmarks.load.spec import Load, LoadError
from streamcell.benchmarks.load.usage import family
from streamcell.client.local_server import ServerProcess

from .engine_alone import Alone
from .peers import Peer
from .processes import EchoServer


def ours(server: ServerProcess, name: str = OURS) -> Target:
    """A server of this project; its metrics give the mean batch."""

    def batches() -> tuple[float, float]:
        return server.metric("streamcell_batch_rows_sum"), server.metric("streamcell_batch_rows_count")

    return Target(name, server.target, tuple(family(server.pid)), batches)


def ours_by_oip(target: Target, model: str) -> Target | None:
    """The same server through the Open Inference Protocol; None if it does not speak it."""
    try:
        load = {"dialect": "oip", **border(target.address, model)}
        run_load(Load(target.address, sessions=1, warm_up_s=0, measure_s=0.1, **load))
    except (grpc.RpcError, LoadError):
        return None
    return Target(OIP, target.address, target.pids, target.batches, load)


@contextmanager
def servers(models: Path, peers: Mapping[str, Peer]) -> Iterator[dict[str, Target]]:
    """Every target by name, running, `peers` included. `models` holds `lstm.onnx` and `mlp.onnx`."""
    with ExitStack() as stack:
        server = stack.enter_context(ServerProcess(models, "--max-sessions", "2000"))
        target = ours(server)
        found = [target, Target(ENGINE, run=Alone(models).run)]
        spread = ServerProcess(models, "--max-sessions", "2000", "--frontends", "2")
        found.append(ours(stack.enter_context(spread), FRONTENDS))
        for name, kind in ((AIO, "aio"), (LANE, "lane")):
            echo = stack.enter_context(EchoServer(kind))
            found.append(Target(name, echo.target, (echo.process.pid,)))
        if (by_oip := ours_by_oip(target, "lstm")) is not None:
            found.append(by_oip)
        found += [stack.enter_context(peer(models)) for peer in peers.values()]
        yield {each.name: each for each in found}
