"""What tests share: small exported models of every kind, and real servers in processes of their own."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import hypothesis
import numpy as np
import pytest
import torch

from streamcell.client.local_server import ServerProcess
from streamcell.export import export_model
from streamcell.models import build
from streamcell.service.build_info import COMPILED
from tests.support.forked import ForkedServer
from tests.support.parallel import made_once, turn
from tests.support.ports import free_port
from tests.support.torchlib import read_once
from tests.support.waiting import waited

# Each process that a test starts would compile StreamCell's 200 modules anew: a third of a server's start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A busy machine may take any time for an example.
hypothesis.settings.register_profile(
    "any time", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any time")

# Until the tests are collected: imports and items are no garbage. See `pytest_collection_finish`.
gc.disable()

# On models of this size PyTorch's threads wait for each other more than they compute.
torch.set_num_threads(1)

INPUT, HIDDEN, OUTPUT, LAYERS = 3, 16, 2, 2

CONFIGS = {
    "lstm": {
        "kind": "lstm",
        "input_size": INPUT,
        "hidden_size": HIDDEN,
        "output_size": OUTPUT,
        "num_layers": LAYERS,
    },
    "gru": {
        "kind": "gru",
        "input_size": INPUT,
        "hidden_size": HIDDEN,
        "output_size": OUTPUT,
        "num_layers": LAYERS,
    },
    "rnn": {
        "kind": "rnn",
        "input_size": INPUT,
        "hidden_size": HIDDEN,
        "output_size": OUTPUT,
        "num_layers": LAYERS,
    },
    "mlp": {"kind": "mlp", "input_size": INPUT, "hidden_sizes": [HIDDEN, HIDDEN], "output_size": OUTPUT},
    "cnn": {
        "kind": "cnn",
        "input_size": INPUT,
        "channels": [HIDDEN, HIDDEN],
        "output_size": OUTPUT,
        "batch_norm": True,
    },
    "tcn": {"kind": "tcn", "input_size": INPUT, "channels": [HIDDEN] * 3, "output_size": OUTPUT},
    # Everything a recurrent stack may have besides its layers.
    "deep": {
        "kind": "gru",
        "input_size": INPUT,
        "hidden_size": HIDDEN,
        "output_size": OUTPUT,
        "num_layers": 3,
        "residual": True,
        "layer_norm": True,
        "tie_layers": True,
    },
}


@pytest.fixture(scope="session")
def modules() -> dict[str, torch.nn.Module]:
    """One small PyTorch module of every kind, in evaluation mode, by the name it is served under."""
    torch.manual_seed(7)
    return {name: build(config).eval() for name, config in CONFIGS.items()}


@pytest.fixture(scope="session")
def models_dir(
    modules: dict[str, torch.nn.Module],
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Path:
    """A folder with every module exported."""

    def make(folder: Path) -> None:
        for name, module in modules.items():
            export_model(module, folder / f"{name}.onnx", name=name)

    return made_once(tmp_path_factory, pytestconfig, "models", make)


Serve = Callable[..., ServerProcess]


@pytest.fixture(scope="session", params=[0, 2], ids=["one process", "front ends"])
def frontends(request: pytest.FixtureRequest) -> int:
    """How many front ends servers have: none, and for the tests that are marked `conformance` two as well."""
    count: int = request.param
    return count


@contextmanager
def _starting(frontends: int) -> Iterator[Serve]:
    started: list[ServerProcess] = []

    def start(models: Path, *flags: str, forked: bool = True, **environment: str) -> ServerProcess:
        environment = {"STREAMCELL_FRONTENDS": str(frontends), **environment}
        server = (ForkedServer if forked else ServerProcess)(models, *flags, environment=environment)
        started.append(server)
        return server.wait_until_up()

    yield start
    for server in started:
        server.process.kill()
        server.stop()


@pytest.fixture(scope="module")
def start_server(frontends: int) -> Iterator[Serve]:
    """Starts a server on a folder of models, with flags and environment; all are stopped after the module.

    `forked=False` executes a new interpreter, for a test of how a process starts or ends.
    """
    with _starting(frontends) as start:
        yield start


@pytest.fixture(scope="session")
def start_shared_server(frontends: int) -> Iterator[Serve]:
    """The same for servers that several modules share."""
    with _starting(frontends) as start:
        yield start


@pytest.fixture(scope="session")
def served(start_shared_server: Serve, models_dir: Path) -> ServerProcess:
    """One server with every kind of model, shared by the tests that leave it as it was."""
    return start_shared_server(models_dir)


Interleaved = Callable[..., dict[str, np.ndarray[Any, Any]]]


@pytest.fixture(scope="session")
def interleaved() -> Interleaved:
    """Streams rows of several models at once, a session a row, in chunks of random sizes in random order.

    `interleaved(client, {model: x[rows, time, *step]}, seed, most=5)` gives {model: y[rows, time, *step]}, y being
    a model's first output.
    """

    def run(client: Any, rows: dict[str, Any], seed: int, most: int = 5) -> dict[str, np.ndarray[Any, Any]]:
        rng = np.random.default_rng(seed)
        with ExitStack() as stack:
            streams = {
                (name, row): (stack.enter_context(client.session(name, lazy=True)), x, list[Any]())
                for name, given in rows.items()
                for row, x in enumerate(given)
            }
            places = dict.fromkeys(streams, 0)
            live = list(streams)
            while live:
                rng.shuffle(live)
                # Some wait, so that each round brings other sessions together.
                sending = live[: max(1, int(len(live) * rng.random()))]
                for key in sending:
                    session, x, _ = streams[key]
                    size = int(rng.integers(1, most + 1))
                    session.send(x[places[key] : places[key] + size])
                    places[key] += size
                for key in sending:
                    session, _, received = streams[key]
                    y = session.receive()
                    received.append(next(iter(y.values())) if isinstance(y, dict) else y)
                live = [key for key in live if places[key] < len(streams[key][1])]
        return {
            name: np.stack([np.concatenate(streams[name, row][2]) for row in range(len(given))])
            for name, given in rows.items()
        }

    return run


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool]], bool]:
    """Waits for something to hold, and says whether it did within a minute."""
    return waited


@pytest.fixture
def counted(
    interpreted_calls: Callable[[Callable[[], object]], Counter[str]],
) -> Callable[[Callable[[], object]], Counter[str]]:
    """As `interpreted_calls`, for tests that bound all calls: the compiled build leaves them out."""
    if COMPILED:
        pytest.skip(_INTERPRETED + "Python's profiler sees no call that compiled code makes")
    return interpreted_calls


@pytest.fixture(scope="session")
def interpreted_calls() -> Callable[[Callable[[], object]], Counter[str]]:
    """Counts the calls of functions while one runs: Python's by qualified name, C's by theirs with "C:" before it.

    Calls of compiled functions, and calls that they make of C's, are not seen.
    """

    def count(run: Callable[[], object]) -> Counter[str]:
        calls: Counter[str] = Counter()

        def note(frame: FrameType, event: str, argument: Any) -> None:
            if event == "call":
                calls[frame.f_code.co_qualname] += 1
            elif event == "c_call":
                calls["C:" + argument.__qualname__] += 1

        collects = gc.isenabled()
        gc.disable()  # its callbacks are no calls of `run`
        sys.setprofile(note)
        try:
            run()
        finally:
            sys.setprofile(None)
            if collects:
                gc.enable()
        return calls

    return count


# The Debian package of a program that tests start; Node.js and kubectl may come from PyPI too, as .ci/programs does it.
_PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "openssl": "openssl",
    "nginx": "nginx",
    "haproxy": "haproxy",
    "redis-server": "redis-server",
    "node": "nodejs npm",
    "npm": "npm",
    "chromium": "chromium",
    "espeak-ng": "espeak-ng",
    "kubectl": "kubernetes-client",
}

# Debian puts these where only root's path leads.
_OF_ROOT = ("nginx", "haproxy")


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Finds a program of `_PACKAGES`, or skips the test and says how to get it."""

    def find(name: str) -> str:
        found = shutil.which(name)
        if found is None and name in _OF_ROOT:
            found = shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if found is None:
            pytest.skip(f"{name} is not installed: apt-get install {_PACKAGES[name]}")
        return found

    return find


@pytest.fixture
def prometheus(worked: ServerProcess, program: Callable[[str], str], tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus that scrapes the module's server `worked` every second."""
    target = worked.metrics_url.split("/")[2]
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: streamcell, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    address = f"127.0.0.1:{free_port()}"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
        yield f"http://{address}"
        process.terminate()
        process.wait(60)


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With front ends only the conformance set runs, after the others. Training demos and studies follow, and then
    what runs alone: the run's other processes wait for it once, not between their tests.

    Within these four groups a module's tests stay together, for they share servers.
    """
    if COMPILED:
        _leave_out_interpreted(items)
    twice = [item for item in items if _with_front_ends(item) and not item.get_closest_marker("conformance")]
    if twice:
        config.hook.pytest_deselected(items=twice)
        left_out = set(twice)
        items[:] = [item for item in items if item not in left_out]
    modules = {item.path: number for number, item in reversed([*enumerate(items)])}
    items.sort(
        key=lambda item: (
            item.get_closest_marker("alone") is not None, item.get_closest_marker("slow") is not None,
            _with_front_ends(item), modules[item.path],
        )
    )  # fmt: skip


def pytest_collection_finish() -> None:
    """What is imported and collected stays: a test that looks for garbage looks at none of it."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def few_descriptors() -> Iterator[None]:
    """Sockets and files that garbage holds are closed before they are many: `select` takes no number above 1,023."""
    yield
    with suppress(OSError):
        if len(os.listdir("/proc/self/fd")) > 128:
            gc.collect()


# Before the reason of a test that the compiled build leaves out.
_INTERPRETED = "for the interpreted build alone: "


def _leave_out_interpreted(items: list[pytest.Item]) -> None:
    """The compiled build runs no test that is marked `interpreted`."""
    for item in items:
        if (mark := item.get_closest_marker("interpreted")) is not None:
            item.add_marker(pytest.mark.skip(reason=_INTERPRETED + mark.args[0]))


def _with_front_ends(item: pytest.Item) -> bool:
    call = getattr(item, "callspec", None)
    return call is not None and bool(call.params.get("frontends"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deals out, in their order, the tests of a module that stand together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        scopes: dict[str, str] | None = None

        def _split_scope(self, nodeid: str) -> str:
            if self.scopes is None:
                groups = enumerate(groupby(self.collection, lambda each: each.partition("::")[0]))
                self.scopes = {each: f"{at} {module}" for at, (module, tests) in groups for each in tests}
            return self.scopes[nodeid]

    config.option.loadscopereorder = False
    return ByModule(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """A test that is marked `alone` runs while the run's other processes run none. Its timeout begins then."""
    with turn(item.config, alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_runtest_setup() -> None:
    read_once()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test has failed: nothing may go untested there because a machine lacks something.

    What the compiled build leaves out, the interpreted one has tested.
    """
    return _skips_fail((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself."""
    return _skips_fail((yield))


def _left_out(report: pytest.TestReport | pytest.CollectReport) -> bool:
    return COMPILED and _reason(report).startswith(_INTERPRETED)


_R = TypeVar("_R", pytest.TestReport, pytest.CollectReport)


def _skips_fail(report: _R) -> _R:
    if report.skipped and not hasattr(report, "wasxfail") and _in_ci() and not _left_out(report):
        report.outcome = "failed"
        report.longrepr = f"{_reason(report)}\nCI is set, where no test may be skipped"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """What was not tested, and how to get it, as the last lines before the count."""
    yield
    skipped: Counter[str] = Counter(map(_reason, terminalreporter.stats.get("skipped", [])))
    if not skipped:
        return
    terminalreporter.section("NOT TESTED", sep="!", red=True, bold=True)
    for reason, count in skipped.most_common():
        terminalreporter.line(f"{count} test{'s' if count > 1 else ''} skipped: {reason}")
    terminalreporter.line("With CI=1 every one of these is a failure, unless another build tests it.")
