"""Targets as people write them."""

from __future__ import annotations

import pytest

from streamcell.client import InvalidInput, connect
from streamcell.client.address import address, host_of


@pytest.mark.parametrize(
    ("target", "meant", "host"),
    [
        ("localhost", "localhost:8500", "localhost"),
        ("localhost:1", "localhost:1", "localhost"),
        ("10.0.0.7", "10.0.0.7:8500", "10.0.0.7"),
        ("::1", "[::1]:8500", "::1"),
        ("[::1]", "[::1]:8500", "::1"),
        ("[::1]:90", "[::1]:90", "::1"),
        ("fe80::1%eth0", "[fe80::1%eth0]:8500", "fe80::1%eth0"),
        ("unix:/run/s.sock", "unix:/run/s.sock", ""),
        ("dns:///example.org:8500", "dns:///example.org:8500", "example.org"),
        ("ipv4:1.2.3.4:5,1.2.3.5:5", "ipv4:1.2.3.4:5,1.2.3.5:5", ""),
    ],
)
def test_a_target_without_a_port_means_8500_and_ipv6_gets_brackets(
    target: str, meant: str, host: str
) -> None:
    assert address(target) == meant
    assert address(meant) == meant
    assert host_of(meant) == host
    with connect(target) as client:
        assert client.target == meant


@pytest.mark.parametrize(
    ("target", "way_on"),
    [
        ("", "name a host, as localhost:8500"),
        (":8500", "name a host"),
        ("my host", "name a host"),
        ("http://localhost:8500/", 'leave "http://" out: connect("localhost:8500")'),
        ("https://example.org", 'leave "https://" out: connect("example.org", tls=True)'),
        ("localhost:http", "the port is a number from 1 to 65535"),
        ("localhost:", "the port is a number"),
        ("localhost:0", "the port is a number"),
        ("localhost:65536", "the port is a number"),
        ("::1:8500:x", "brackets, as [::1]:8500"),
        ("[localhost]:8500", "an IPv6 address stands in brackets"),
    ],
)
def test_what_is_no_target_is_refused_with_the_way_on(target: str, way_on: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        connect(target)
    assert caught.value.reason == "WRONG_TARGET"
    assert way_on in str(caught.value)
