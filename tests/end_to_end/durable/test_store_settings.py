"""A server with a shared store as it is started: its metrics, and what it says of settings that do not work."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from streamcell.client.local_server import ServerProcess, ServerProcessError
from streamcell.service.store.connection import Connection
from tests.support.valkey import ValkeyServer, valkey
from tests.support.waiting import waited


def leases(store: ValkeyServer) -> list[bytes]:
    """Who has one."""
    connection = Connection(replace(store.address, password="secret"), "test", timeout_s=10.0)
    found: list[bytes] = connection.call(b"KEYS", b"sc:l:east-*")
    connection.close()
    return found


def test_a_server_takes_a_lease_shows_it_and_gives_it_back(models_dir: Path, tmp_path: Path) -> None:
    password, keys = tmp_path / "password", tmp_path / "keys"
    password.write_text("secret\n")
    keys.write_text("00" * 32)
    with valkey("--requirepass", "secret") as store:
        flags = ("--durability", "store-sync", "--store", store.url, "--replica", "east")
        files = ("--store-password-file", str(password), "--store-key-file", str(keys))
        with ServerProcess(models_dir, *flags, *files) as server:
            assert waited(
                lambda: re.search(r"^streamcell_lease_age_seconds [0-9.]+$", server.metrics(), re.M)
            )
            text = server.metrics()
            assert "streamcell_lease_seconds 5.0" in text
            assert "streamcell_store_lag_seconds 0.0" in text
            assert 'streamcell_store_errors_total{kind="refused"} 0.0' in text
            assert len(leases(store)) == 1
        assert leases(store) == []


def test_a_store_that_refuses_the_server_ends_it_with_what_to_change(models_dir: Path) -> None:
    with valkey("--requirepass", "secret") as store:
        begun = [
            (ServerProcess(models_dir, "--durability", "store-async", "--store", url), said)
            for url, said in (
                (store.url, "--store: .*NOAUTH|Authentication"),
                ("http://h", "valkey://HOST:PORT"),
            )
        ]
        for server, said in begun:
            with pytest.raises(ServerProcessError, match=said) as refused:
                server.wait_until_up()
            assert server.stop() == 1
            assert "Traceback" not in str(refused.value)
