"""Where the streams of a session that can be resumed go, and what their calls say to proxies."""

from __future__ import annotations

import grpc
import pytest

from streamcell.client.address import is_place
from streamcell.client.errors import StreamCellError, from_reason
from streamcell.client.protocol.way import Way
from streamcell.proto import pb

SESSION = bytes(range(16))
ID = ("streamcell-session", SESSION.hex())


def elsewhere(**about: str) -> StreamCellError:
    return from_reason(grpc.StatusCode.UNAVAILABLE, "SESSION_ELSEWHERE", "", about)


def moved() -> StreamCellError:
    return from_reason(grpc.StatusCode.UNAVAILABLE, "SESSION_MOVED", "", {})


def broken() -> StreamCellError:
    return from_reason(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", "", {})


def test_without_a_store_every_call_names_the_replica_that_has_the_session() -> None:
    way = Way(SESSION)
    assert way.metadata() == (ID,)
    assert way.opened(pb.SessionOpened(replica="a-1"), stored=False)
    way.failed(broken())
    assert way.metadata() == (ID, ("streamcell-replica", "a-1"))
    assert Way(SESSION, way.replica).metadata() == way.metadata()  # a ticket carries it
    assert way.opened(pb.SessionOpened(replica="b"), stored=True)
    assert way.metadata() == (ID,)


def test_a_replica_that_an_error_names_is_asked_for_once() -> None:
    way = Way(SESSION)
    way.failed(elsewhere(replica="b.example"))
    assert way.metadata() == (ID, ("streamcell-replica", "b.example"))
    way.failed(broken())
    assert way.metadata() == (ID,)
    way.moved(pb.Moved(replica="c"))
    way.failed(moved())  # that is what the session ends with if nothing follows
    assert way.metadata() == (ID, ("streamcell-replica", "c"))
    assert way.opened(pb.SessionOpened(replica="c"), stored=True)
    assert way.metadata() == (ID,)


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "-a", "é", "x" * 300, "a\0"])
def test_what_is_no_name_is_not_sent(name: str) -> None:
    way = Way(SESSION)
    way.moved(pb.Moved(replica=name))
    assert way.metadata() == (ID,)
    way.opened(pb.SessionOpened(replica=name), stored=False)
    assert way.metadata() == (ID,)


def test_addresses_are_taken_only_if_the_client_was_made_for_it() -> None:
    way = Way(SESSION)
    assert way.opened(pb.SessionOpened(address="10.0.0.1:8500"), stored=True)
    way.moved(pb.Moved(address="10.0.0.1:8500"))
    assert way.address == ""


def test_any_error_at_an_address_sends_the_session_back_to_the_target() -> None:
    way = Way(SESSION)
    way.set_out(("proxy:1",), direct=True)
    for address in ("10.0.0.1:8500", "10.0.0.2:8500", "10.0.0.3:8500"):
        way.begin()
        assert not way.opened(pb.SessionOpened(address=address), stored=True)
        way.failed(moved())
        assert way.address == address
        way.begin()
        assert way.is_trial
        way.failed(broken())
        assert way.address == ""
        way.begin()
        assert way.opened(pb.SessionOpened(address=address), stored=True)  # not there again
    assert way.opened(
        pb.SessionOpened(address="10.0.0.4:8500"), stored=True
    )  # nor anywhere, after three failures
    assert way.address == ""


def test_an_address_that_was_good_is_tried_again_after_a_break() -> None:
    way = Way(SESSION)
    way.set_out(("proxy:1",), direct=True)
    for _ in range(5):
        way.begin()
        assert not way.opened(pb.SessionOpened(address="10.0.0.1:8500"), stored=True)
        way.begin()
        assert way.opened(pb.SessionOpened(address="10.0.0.1:8500"), stored=True)
        way.failed(broken())
        assert way.address == ""


def test_a_session_that_is_at_the_address_stays_there() -> None:
    way = Way(SESSION)
    way.set_out(("proxy:1",), direct=True)
    way.moved(pb.Moved(replica="b", address="b.example:8500"))
    way.failed(moved())
    assert way.address == "b.example:8500"
    way.begin()
    assert way.opened(pb.SessionOpened(address="b.example:8500"), stored=True)
    assert way.address == "b.example:8500"
    assert not way.is_trial


def test_one_of_several_targets_that_fails_is_passed_over_and_the_one_that_a_server_names_is_taken() -> None:
    way = Way(SESSION)
    way.set_out(("a:1", "b:2", "c:3"), direct=False)
    way.failed(broken())
    assert way.turn == 1
    way.failed(elsewhere(replica="c", address="c:3"))
    assert (way.turn, way.address) == (2, "")
    assert way.opened(pb.SessionOpened(address="c:3"), stored=True)
    way.failed(broken())
    assert way.turn % 3 == 0


def test_without_a_store_a_session_stays_with_its_target() -> None:
    way = Way(SESSION)
    way.set_out(("a:1", "b:2"), direct=False)
    way.opened(pb.SessionOpened(), stored=False)
    way.failed(broken())
    assert way.turn == 0


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("10.0.0.1:8500", True), ("[::1]:8500", True), ("pod-1.ring.svc:8500", True),
        ("", False), ("host", False), ("::1", False), ("host:0", False), ("host:99999", False), ("a b:1", False),
        ("unix:/run/x", False), ("dns:8500", False), ("ipv4:1.2.3.4:5,1.2.3.5:5", False), ("xds:x", False),
        ("http://host:1", False), ("user@/x:1", False), ("a:1,b:2", False), ("x" * 300 + ":1", False),
    ],
)  # fmt: skip
def test_an_address_that_a_server_tells_is_a_host_and_a_port_and_nothing_else(
    text: str, is_one: bool
) -> None:
    assert is_place(text) == is_one
