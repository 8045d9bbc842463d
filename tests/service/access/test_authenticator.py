"""Who calls is found by token or certificate; files are read again when they change, and wrong ones change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamcell.service.access.access_errors import (
    AccessConfigError,
    NotAuthenticated,
    NotPermitted,
    TokenExpired,
)
from streamcell.service.access.authenticator import Authenticator, asks_who_calls, warn_if_open
from streamcell.service.access.identity import ANYONE, Identity, pack_identity, unpack_identity
from streamcell.service.access.policy import Policy
from streamcell.service.access.static_tokens import StaticTokens, sha256_of
from streamcell.service.access.watched import Watched
from streamcell.service.settings import Settings
from tests.support.tokens import AUDIENCE, ISSUER, Issuer, bearer, key_set, token_file

PAIR = {"tls_cert": "c.pem", "tls_key": "k.pem"}


def nobody() -> dict[str, list[bytes]]:
    return {}


def made(tmp_path: Path, watched: Watched | None = None, **settings: Any) -> Authenticator:
    return Authenticator(Settings.load(models=tmp_path, **settings), watched or Watched())


def test_a_token_of_the_file_names_its_tenant(tmp_path: Path) -> None:
    path = token_file(tmp_path / "t.toml", ("acme", "feed"), ("bank", "ops"), operators=("ops",))
    check = made(tmp_path, token_file=path).check
    assert check(bearer("token-of-feed"), nobody) == Identity("acme", "feed", False)
    assert check((("authorization", "bearer token-of-ops"),), nobody) == Identity("bank", "ops", True)
    assert "token-of" not in path.read_text()


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        bearer("token-of-nobody"),
        bearer(""),
        (("authorization", "token-of-feed"),),
        (("authorization", "Basic token-of-feed"),),
        (*bearer("token-of-feed"), *bearer("token-of-feed")),
        (("authorization", b"Bearer token-of-feed"),),
        (("authorization-bin", b"Bearer token-of-feed"),),
        (("x-streamcell-tenant", "acme"), ("tenant", "acme")),
        (("authorization", "Bearer " + sha256_of("token-of-feed")),),
    ],
)
def test_nothing_else_does(tmp_path: Path, metadata: Any) -> None:
    check = made(tmp_path, token_file=token_file(tmp_path / "t.toml", ("acme", "feed"))).check
    with pytest.raises(NotAuthenticated):
        check(metadata, nobody)


def test_a_token_expires(tmp_path: Path) -> None:
    path = token_file(tmp_path / "t.toml", ("acme", "feed"))
    path.write_text(path.read_text() + "expires = 2020-01-01T00:00:00Z\n")
    with pytest.raises(TokenExpired, match="'feed' has expired"):
        StaticTokens(path).find("token-of-feed")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[tokens]", "no TOML"),
        ("[[tokens]]\nsha256 = 'secret'\ntenant = 'a'\nsubject = 'b'", r"tokens\.0\.sha256"),
        (f"[[tokens]]\nsha256 = '{'0' * 64}'\ntenant = 'a'", r"tokens\.0\.subject"),
        (f"[[tokens]]\nsha256 = '{'0' * 64}'\ntenant = ''\nsubject = 'b'", r"tokens\.0\.tenant"),
        (f"[[tokens]]\nsha256 = '{'0' * 64}'\ntenant = 'a b'\nsubject = 'b'", r"tokens\.0\.tenant"),
        (
            f"[[tokens]]\nsha256 = '{'0' * 64}'\ntenant = 'a'\nsubject = 'b'\nadmin = true",
            r"tokens\.0\.admin",
        ),
        (
            f"[[tokens]]\nsha256 = '{'0' * 64}'\ntenant = 'a'\nsubject = 'b'\nexpires = 2020-01-01T00:00:00",
            "expires",
        ),
        (2 * f"[[tokens]]\nsha256 = '{'0' * 64}'\ntenant = 'a'\nsubject = 'b'\n", "two tokens"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_key_and_no_value(
    tmp_path: Path, text: str, why: str
) -> None:
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(AccessConfigError, match=why) as raised:
        StaticTokens(path)
    assert str(path) in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_certificate_is_known_by_its_alternative_names_the_uri_first(tmp_path: Path) -> None:
    check = made(tmp_path, tls_client_ca="ca.pem", **PAIR).check
    names = {"peer_uri": [b"spiffe://bank/a"], "peer_dns": [b"a.example"], "peer_email": [b"a@b.c"]}
    for kind, found in (("peer_uri", "spiffe://bank/a"), ("peer_dns", "a.example"), ("peer_email", "a@b.c")):
        assert check((), lambda: names) == Identity(found, found, False)
        del names[kind]
    with pytest.raises(NotAuthenticated, match="names nobody"):
        check((), lambda: {"x509_common_name": [b"root"]})


def test_a_wrong_token_is_refused_although_the_certificate_is_good(tmp_path: Path) -> None:
    path = token_file(tmp_path / "t.toml", ("acme", "feed"))
    check = made(tmp_path, tls_client_ca="ca.pem", token_file=path, **PAIR).check
    peer = {"peer_dns": [b"a.example"]}
    assert check((), lambda: peer).tenant == "a.example"
    assert check(bearer("token-of-feed"), lambda: peer).tenant == "acme"
    with pytest.raises(NotAuthenticated):
        check(bearer("token-of-nobody"), lambda: peer)


def test_tokens_of_a_file_and_of_an_issuer_go_together(tmp_path: Path) -> None:
    issuer = Issuer()
    (tmp_path / "keys.json").write_text(key_set(issuer.jwk()))
    check = made(
        tmp_path,
        token_file=token_file(tmp_path / "t.toml", ("bank", "ops")),
        jwt_jwks=str(tmp_path / "keys.json"),
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
    ).check
    assert check(bearer("token-of-ops"), nobody).tenant == "bank"
    assert check(bearer(issuer.token()), nobody).tenant == "acme"
    assert check(bearer(issuer.token(tenant=None)), nobody).tenant == "feed"


def test_changed_files_are_read_once_they_are_whole_and_wrong_ones_change_nothing(tmp_path: Path) -> None:
    path = token_file(tmp_path / "t.toml", ("acme", "feed"))
    watched = Watched()
    check = made(tmp_path, watched, token_file=path).check
    watched.look()
    token_file(path, ("bank", "feed"), ("bank", "more"))
    watched.look()
    assert check(bearer("token-of-feed"), nobody).tenant == "acme"  # it may still be written to
    watched.look()
    assert check(bearer("token-of-feed"), nobody).tenant == "bank"
    for wrong in ("nonsense", None):
        path.write_text(wrong) if wrong else path.unlink()
        watched.look(), watched.look(), watched.look()
        assert check(bearer("token-of-more"), nobody).tenant == "bank"
    token_file(path, ("acme", "feed"))
    watched.reload()  # SIGHUP: at once
    assert check(bearer("token-of-feed"), nobody).tenant == "acme"
    with pytest.raises(NotAuthenticated):
        check(bearer("token-of-more"), nobody)


POLICY = """
operators = ["spiffe://bank/ops"]
[tenants.acme]
subjects = ["spiffe://bank/a", "feed"]
models = ["lstm"]
max_sessions = 3
"""


def test_the_policy_places_subjects_and_refuses_tenants_that_it_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    policy = Policy(path)
    assert policy.placed(Identity("", "spiffe://bank/a", False)) == Identity("acme", "spiffe://bank/a", False)
    assert policy.placed(Identity("", "spiffe://bank/ops", False)).operator
    # What a credential says itself counts before the file.
    with pytest.raises(NotPermitted, match="tenant 'other'"):
        policy.placed(Identity("other", "feed", False))
    with pytest.raises(NotPermitted, match="tenant 'stranger'"):
        policy.placed(Identity("", "stranger", False))
    path.write_text(POLICY + "[default]\nmodels = []\n")
    policy.reload()
    assert policy.terms("stranger").models == frozenset()
    assert policy.terms("acme").max_sessions == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[tenants.a]\nmodel = ['x']", r"tenants\.a\.model"),
        ("[tenants.a]\ncalls = ['walk']", r"tenants\.a\.calls"),
        ("[tenants.a]\nmax_sessions = -1", r"tenants\.a\.max_sessions"),
        ("[tenants.a]\nsteps_per_s = inf", r"tenants\.a\.steps_per_s"),
        ("[tenants.a]\nsubjects = ['s']\n[tenants.b]\nsubjects = ['s']", "in tenants 'a' and 'b'"),
        ("operator = ['x']", "operator"),
    ],
)
def test_a_wrong_policy_is_one_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(AccessConfigError, match=why):
        Policy(path)


def test_an_identity_crosses_to_another_process_as_it_is() -> None:
    for each in (ANYONE, Identity("a", "b", False), Identity("ünï", '"\\', True)):
        assert unpack_identity(pack_identity(each)) == each
    assert unpack_identity(pack_identity(ANYONE)) is ANYONE


@pytest.mark.parametrize(
    ("settings", "events"),
    [
        ({}, []),
        ({"host": "localhost"}, []),
        ({"host": "::1"}, []),
        ({"host": "127.0.0.5"}, []),
        ({"host": "0.0.0.0"}, ["ANYONE"]),
        ({"host": "::"}, ["ANYONE"]),
        ({"host": "10.0.0.1", "token_file": "t.toml"}, ["TOKENS TRAVEL", "TOKENS AND DATA"]),
        ({"host": "10.0.0.1", "token_file": "t.toml", **PAIR}, ["TOKENS TRAVEL"]),
        ({"host": "10.0.0.1", "tls_client_ca": "ca.pem", **PAIR}, ["TOKENS TRAVEL"]),
        ({"host": "10.0.0.1", "token_file": "t.toml", "metrics_tls": True, **PAIR}, []),
        ({"host": "10.0.0.1", "token_file": "t.toml", "metrics_host": "127.0.0.1", **PAIR}, []),
        ({"token_file": "t.toml", "metrics_host": "10.0.0.1"}, ["TOKENS TRAVEL"]),
        (
            {"host": "10.0.0.1", "token_file": "t.toml", "metrics_open": True, **PAIR},
            ["ANYONE WHO REACHES THE METRICS"],
        ),
        ({"host": "10.0.0.1", **PAIR}, ["ANYONE"]),
    ],
)
def test_a_server_that_asks_nobody_says_so_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], events: list[str]
) -> None:
    said: list[str] = []

    class Log:
        def warning(self, event: str, **facts: object) -> None:
            said.append(event)

    monkeypatch.setattr("streamcell.service.access.authenticator._log", Log())
    warn_if_open(Settings.load(models=tmp_path, **settings))
    assert [event for event, begin in zip(said, events, strict=True) if event.startswith(begin)] == said


def test_who_calls_is_asked_only_if_a_setting_says_so(tmp_path: Path) -> None:
    assert not asks_who_calls(Settings.load(models=tmp_path, **PAIR))
    for wrong, why in (
        ({"tls_client_ca": "ca.pem"}, "needs tls_cert"),
        ({"jwt_jwks": "k.json", "jwt_issuer": "i"}, "jwt_audience"),
        ({"policy_file": "p.toml"}, "nobody has a tenant"),
    ):
        with pytest.raises(ValueError, match=why):
            Settings.load(models=tmp_path, **wrong)


def test_a_token_for_metrics_shows_figures_until_it_expires_and_is_nobody_elsewhere(tmp_path: Path) -> None:
    tokens = token_file(tmp_path / "t.toml", ("bank", "scraper"))
    lines = tokens.read_text().replace("operator = false", "metrics = true")
    tokens.write_text(lines)
    asked = Authenticator(Settings.load(models=tmp_path, token_file=tokens), Watched())
    asked.check_viewer(bearer("token-of-scraper"), nobody)
    with pytest.raises(NotPermitted, match="metrics port alone"):
        asked.check(bearer("token-of-scraper"), nobody)
    tokens.write_text(lines + "expires = 2020-01-01T00:00:00Z\n")
    asked = Authenticator(Settings.load(models=tmp_path, token_file=tokens), Watched())
    with pytest.raises(TokenExpired):
        asked.check_viewer(bearer("token-of-scraper"), nobody)
    with pytest.raises(NotAuthenticated):
        asked.check_viewer((), nobody)
