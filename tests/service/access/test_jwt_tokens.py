"""A JWT is accepted if its issuer has signed it for this server and it has not expired; every other kind is refused."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from streamcell.service.access import key_set as key_sets
from streamcell.service.access.access_errors import AccessConfigError, NotAuthenticated, TokenExpired
from streamcell.service.access.identity import Identity
from streamcell.service.access.jwt_tokens import JwtTokens
from streamcell.service.access.key_set import KeySet
from tests.support.tokens import AUDIENCE, ISSUER, Issuer, key_set

GOOD, FOREIGN = Issuer("k1"), Issuer("k1")
OTHER = Issuer("k2", "RSA")


def tokens_of(keys: KeySet, leeway_s: float = 30.0) -> JwtTokens:
    return JwtTokens(keys, issuer=ISSUER, audience=AUDIENCE, leeway_s=leeway_s, tenant_claim="tenant")


@pytest.fixture
def keys(tmp_path: Path) -> KeySet:
    path = tmp_path / "keys.json"
    path.write_text(key_set(GOOD.jwk(), OTHER.jwk()))
    return KeySet(str(path))


def test_a_good_token_names_tenant_and_subject_with_every_kind_of_key(tmp_path: Path) -> None:
    for kind in ("EC", "RSA", "OKP"):
        issuer = Issuer("it", kind)
        path = tmp_path / "keys.json"
        path.write_text(key_set(issuer.jwk()))
        tokens = tokens_of(KeySet(str(path)))
        assert tokens.identity(issuer.token()) == Identity("acme", "feed", False)
        assert tokens.identity(issuer.token(tenant=None, aud=["x", AUDIENCE])) == Identity("", "feed", False)
        # A claim makes nobody an operator.
        assert not tokens.identity(issuer.token(operator=True)).operator


def _unsigned() -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "feed", "exp": time.time() + 60}
    return f"{part({'alg': 'none', 'kid': 'k1'})}.{part(claims)}."


def _signed_with_the_public_key() -> str:
    """As an attacker does whose server takes the public key for a shared secret."""
    public = OTHER.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "feed", "exp": time.time() + 60}
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"k2"}').rstrip(b"=")
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    hs256: Any = jwt.get_algorithm_by_name("HS256")
    signature = base64.urlsafe_b64encode(hs256.sign(header + b"." + body, public)).rstrip(b"=")
    return b".".join((header, body, signature)).decode()


def _changed() -> str:
    head, body, signature = GOOD.token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["tenant"] = "other"
    return f"{head}.{base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b'=').decode()}.{signature}"


WRONG: dict[str, tuple[Callable[[], str], type[NotAuthenticated], str]] = {
    "expired": (lambda: GOOD.token(exp=time.time() - 600), TokenExpired, "expired"),
    "not valid yet": (lambda: GOOD.token(nbf=time.time() + 600), NotAuthenticated, "not valid yet"),
    "issued in the future": (lambda: GOOD.token(iat=time.time() + 600), NotAuthenticated, "not"),
    "for another audience": (lambda: GOOD.token(aud="other"), NotAuthenticated, "another audience"),
    "without an audience": (lambda: GOOD.token(aud=None), NotAuthenticated, "lacks"),
    "of another issuer": (lambda: GOOD.token(iss="https://other"), NotAuthenticated, "another issuer"),
    "without an issuer": (lambda: GOOD.token(iss=None), NotAuthenticated, "lacks"),
    "without an expiry": (lambda: GOOD.token(exp=None), NotAuthenticated, "lacks"),
    "without a subject": (lambda: GOOD.token(sub=None), NotAuthenticated, "lacks"),
    "with an empty subject": (lambda: GOOD.token(sub=""), NotAuthenticated, "1 to 128 characters"),
    "with a tenant that is no text": (lambda: GOOD.token(tenant=["acme"]), NotAuthenticated, "1 to 128"),
    "with a tenant of two lines": (lambda: GOOD.token(tenant="a\nb"), NotAuthenticated, "1 to 128"),
    "with a tenant too long": (lambda: GOOD.token(tenant="x" * 129), NotAuthenticated, "1 to 128"),
    "signed by a stranger": (FOREIGN.token, NotAuthenticated, "signature"),
    "of a key that is not published": (lambda: GOOD.token({"kid": "k9"}), NotAuthenticated, "key"),
    "without a key's id": (lambda: GOOD.token({"kid": None}), NotAuthenticated, ""),
    "with another key's id": (lambda: GOOD.token({"kid": "k2"}), NotAuthenticated, "algorithm"),
    "changed": (_changed, NotAuthenticated, "signature"),
    "not signed": (_unsigned, NotAuthenticated, "algorithm"),
    "signed with the public key": (_signed_with_the_public_key, NotAuthenticated, "algorithm"),
    "cut": (lambda: GOOD.token()[:-10], NotAuthenticated, ""),
    "two parts": (lambda: "a.b", NotAuthenticated, "no JWT"),
    "no JWT": (lambda: "secret", NotAuthenticated, "no JWT"),
    "huge": (lambda: GOOD.token(more="x" * 20_000), NotAuthenticated, "bytes"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_token_is_refused_and_the_error_has_nothing_of_it(keys: KeySet, kind: str) -> None:
    make, error, why = WRONG[kind]
    tokens, token = tokens_of(keys), make()
    for _ in range(2):  # nor is it known the second time
        with pytest.raises(error) as raised:
            tokens.identity(token)
        assert type(raised.value) is error
        assert why in str(raised.value)
        assert not any(part in str(raised.value) for part in token.split(".") if len(part) > 6)


def test_the_leeway_is_what_the_issuers_clock_may_differ(keys: KeySet) -> None:
    late = GOOD.token(exp=time.time() - 100)
    assert tokens_of(keys, leeway_s=200).identity(late).subject == "feed"
    with pytest.raises(TokenExpired):
        tokens_of(keys, leeway_s=50).identity(late)


def test_a_token_that_was_verified_is_known_until_its_key_is_withdrawn(keys: KeySet) -> None:
    tokens, token = tokens_of(keys), GOOD.token()
    assert tokens.identity(token) == tokens.identity(token)
    assert keys.path is not None
    keys.path.write_text(key_set(OTHER.jwk()))
    keys.reload()
    with pytest.raises(NotAuthenticated, match="key"):
        tokens.identity(token)
    assert tokens.identity(OTHER.token()).subject == "feed"


def test_a_token_that_is_verified_while_its_key_is_withdrawn_is_not_known_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    path.write_text(key_set(GOOD.jwk()))
    keys = KeySet(str(path))
    tokens = tokens_of(keys)
    token, verify = GOOD.token(), jwt.decode

    def slow(*args: Any, **more: Any) -> Any:
        claims = verify(*args, **more)
        monkeypatch.undo()
        path.write_text(key_set(OTHER.jwk()))
        keys.reload()
        assert tokens.identity(OTHER.token()).subject == "feed"  # another thread's call
        return claims

    monkeypatch.setattr(jwt, "decode", slow)
    assert tokens.identity(token).subject == "feed"
    with pytest.raises(NotAuthenticated):
        tokens.identity(token)


def _small() -> dict[str, Any]:
    issuer = Issuer("small", "RSA")
    issuer.key = rsa.generate_private_key(65537, 1024)
    return issuer.jwk()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no key set"),
        ("[]", "no key set"),
        ('{"keys": 1}', "no key set"),
        ('{"keys": []}', "no RSA, EC or Ed25519 key"),
        ('{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "s"}]}', "no RSA, EC or Ed25519 key"),
        (key_set(GOOD.jwk(use="enc")), "no RSA, EC or Ed25519 key"),
        (key_set(GOOD.jwk(alg="HS256")), "no RSA, EC or Ed25519 key"),
        (key_set(GOOD.jwk(x="")), "key 0"),
        (key_set(GOOD.private_jwk()), "private key"),
        (key_set(_small()), "1024 bits"),
    ],
)
def test_a_set_without_keys_to_trust_is_refused_at_the_start(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(AccessConfigError, match=why):
        KeySet(str(path))


class Published:
    """A server of keys, and how often it was asked."""

    def __init__(self) -> None:
        self.answer: tuple[int, str] = (200, key_set(GOOD.jwk()))
        self.asked = 0
        self.held = threading.Event()  # not set: answers wait
        self.held.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                outer.held.wait(10)
                code, text = outer.answer
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", text)
                    text = ""
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/keys"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def published() -> Any:
    made = Published()
    yield made
    made.close()


def test_an_address_is_asked_again_for_a_new_key_and_not_more_often_than_it_may(published: Published) -> None:
    now_s = [0.0]
    keys = KeySet(published.address, lambda: now_s[0])
    tokens = tokens_of(keys)
    assert tokens.identity(GOOD.token()).subject == "feed"
    published.answer = 200, key_set(GOOD.jwk(), OTHER.jwk())
    for _ in range(5):  # a client cannot have it asked for each of its calls
        with pytest.raises(NotAuthenticated, match="try again"):
            tokens.identity(OTHER.token())
        keys.look()
    assert published.asked == 1
    now_s[0] = 11.0
    keys.look()
    assert published.asked == 2
    assert tokens.identity(OTHER.token()).subject == "feed"
    now_s[0] = 300.0
    keys.look()
    assert published.asked == 2
    now_s[0] = 312.0
    keys.look()
    assert published.asked == 3


def test_if_an_address_does_not_answer_the_keys_stay(published: Published) -> None:
    now_s = [0.0]
    keys = KeySet(published.address, lambda: now_s[0])
    for answer in ((500, ""), (200, "{}"), (302, "http://127.0.0.1:1/keys"), (200, " " * 2_000_000)):
        published.answer = answer
        now_s[0] += 400.0
        keys.look()
        assert tokens_of(keys).identity(GOOD.token()).subject == "feed"
    assert published.asked == 5
    with pytest.raises(AccessConfigError, match="bytes"):
        KeySet(published.address)


@pytest.mark.parametrize("trickles", ["head", "body"])
def test_an_address_whose_answer_never_ends_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, trickles: str
) -> None:
    monkeypatch.setattr(key_sets, "_WHOLE_S", 0.5)
    asked: list[socket.socket] = []
    head = b"HTTP/1.0 200 OK\r\n" + (b"\r\n" if trickles == "body" else b"X: ")

    def trickle() -> None:
        while True:
            try:
                asked.append(listening.accept()[0])
                asked[-1].sendall(head)
                while True:
                    asked[-1].sendall(b" ")
                    time.sleep(0.05)
            except OSError:
                if listening.fileno() < 0:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=trickle, daemon=True).start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/keys"
        why: list[str] = []
        reader = threading.Thread(target=_read, args=(address, why), daemon=True)
        reader.start()
        reader.join(60)
        assert [text.partition("keys: ")[2] for text in why] == ["no whole answer in 0.5 s"]
        assert len(asked) == 1
        listening.shutdown(socket.SHUT_RDWR)
    asked[0].close()


def _read(address: str, why: list[str]) -> None:
    try:
        KeySet(address)
    except AccessConfigError as error:
        why.append(str(error))


def test_an_address_that_answers_no_http_is_named_and_its_answer_is_clipped() -> None:
    def answer() -> None:
        with listening.accept()[0] as asked:
            asked.sendall(b"x" * 2000 + b"\r\n\r\n")
            asked.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(AccessConfigError, match="--jwt-jwks http") as raised:
            KeySet(f"http://127.0.0.1:{listening.getsockname()[1]}/keys")
    assert len(str(raised.value)) < 300


def test_while_an_address_still_answers_it_is_not_asked_once_more(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    keys = KeySet(published.address, lambda: now_s[0])
    monkeypatch.setattr(key_sets, "_WHOLE_S", 0.1)
    published.held.clear()
    for _ in range(3):
        now_s[0] += 400.0
        keys.look()
        assert published.asked == 2
        assert tokens_of(keys).identity(GOOD.token()).subject == "feed"
    published.held.set()
    deadline_s = time.monotonic() + 60
    while published.asked < 3 and time.monotonic() < deadline_s:
        now_s[0] += 400.0
        keys.look()
    assert published.asked >= 3


@pytest.mark.parametrize(
    "address", ["http://keys.example/jwks", "ftp://127.0.0.1/jwks", "file:///etc/passwd"]
)
def test_keys_come_from_no_address_whose_answer_others_could_write(address: str) -> None:
    with pytest.raises(AccessConfigError, match="https"):
        KeySet(address)
