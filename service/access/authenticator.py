"""Establishes who calls: by a bearer token, or by the client certificate of the connection."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence

import structlog

from streamcell.service.settings import Settings

from .access_errors import NotAuthenticated, NotPermitted
from .certificates import of_certificate
from .checks import Metadata, Peer
from .identity import AUTHORIZATION, NOBODY, Identity
from .policy import Policy, Terms
from .static_tokens import StaticTokens
from .watched import Watched

_log = structlog.get_logger(__name__)

_SCHEME = "bearer "
_USUAL = Terms()


class Authenticator:
    """Identifies a server's callers; `check` is for a `transport.guard.Guard`. It never waits."""

    def __init__(self, settings: Settings, watched: Watched) -> None:
        """Read tokens and keys; `watched` reads them again when they change.

        Raises:
            AccessConfigError: they cannot be used; the text names the file or the address.
        """
        self._certificates = settings.tls_client_ca is not None
        self._tokens: StaticTokens | None = None
        self._jwt: Callable[[str], Identity] | None = None
        self._policy: Policy | None = None
        if settings.policy_file is not None:
            self._policy = policy = Policy(settings.policy_file)
            watched.add((policy.path,), policy.reload)
        if settings.token_file is not None:
            self._tokens = tokens = StaticTokens(settings.token_file)
            watched.add((tokens.path,), tokens.reload)
        if settings.jwt_jwks is not None:
            from .jwt_tokens import JwtTokens  # PyJWT takes a tenth of a second to import
            from .key_set import KeySet

            keys = KeySet(settings.jwt_jwks)
            if keys.path is not None:
                watched.add((keys.path,), keys.reload)
            watched.each_look(keys.look)
            self._jwt = JwtTokens(
                keys,
                issuer=settings.jwt_issuer or "",
                audience=settings.jwt_audience or "",
                leeway_s=settings.jwt_leeway_s,
                tenant_claim=settings.jwt_tenant_claim,
            ).identity

    def check(self, metadata: Metadata, peer: Peer) -> Identity:
        """The caller of a call with this metadata; `peer()` returns what TLS knows of the peer.

        A token counts before the certificate. A wrong token is refused even if the certificate is valid.

        Raises:
            TokenExpired, NotAuthenticated: the server does not know the caller.
            NotPermitted: the policy file has no terms for the caller.
        """
        takes_tokens = self._tokens is not None or self._jwt is not None
        given = [value for key, value in metadata if key == AUTHORIZATION] if takes_tokens else []
        if given:
            caller = self._of_token(given)
        elif self._certificates:
            caller = of_certificate(peer())
        else:
            raise NotAuthenticated(
                "this server asks who calls: send a token with each call, as metadata `authorization: Bearer TOKEN`"
            )
        if self._policy is not None:
            return self._policy.placed(caller)
        return caller if caller.tenant else caller._replace(tenant=caller.subject)

    def check_viewer(self, metadata: Metadata, peer: Peer) -> None:
        """Admit callers who may see the figures of all tenants: operators, and tokens for the metrics port.

        Raises:
            TokenExpired, NotAuthenticated: nobody that this server knows.
            NotPermitted: a tenant.
        """
        given = [value for key, value in metadata if key == AUTHORIZATION]
        if self._tokens is not None and given and self._tokens.for_metrics(token := _token(given)):
            self._tokens.find(token)  # it may have expired
            return
        caller = self.check(metadata, peer)
        if not caller.operator:
            raise NotPermitted(
                f"{caller.subject!r} is no operator, and the figures are of all tenants: come with an operator's "
                "credential, or a token made by `streamcell token --metrics`"
            )

    def sees(self, caller: Identity, model: str) -> bool:
        """True if `caller` may know of a model of that name."""
        if caller.operator or self._policy is None:
            return caller != NOBODY
        try:
            models = self._policy.terms(caller.tenant).models
        except NotPermitted:
            return False
        return caller != NOBODY and (models is None or model in models)

    def turn(self, tenant: str) -> int:
        """Messages of a tenant's turn in reading."""
        return self._terms(tenant).turn

    def most_bytes(self, tenant: str) -> int | None:
        """Bytes of messages that a tenant may have unanswered; None: any number."""
        return self._terms(tenant).max_bytes_in_flight

    def _terms(self, tenant: str) -> Terms:
        try:
            return _USUAL if self._policy is None else self._policy.terms(tenant)
        except NotPermitted:  # an operator, or a tenant that was taken out of the file
            return _USUAL

    def _of_token(self, given: Sequence[str | bytes]) -> Identity:
        token = _token(given)
        if self._tokens is not None and (known := self._tokens.find(token)) is not None:
            if self._tokens.for_metrics(token):
                raise NotPermitted(f"the token of {known.subject!r} is for the metrics port alone")
            return known
        if self._jwt is not None:
            return self._jwt(token)
        raise NotAuthenticated("the token is not known here: send the one that you were given")


def _token(given: Sequence[str | bytes]) -> str:
    """The token of a call with these `authorization` values. Raises NotAuthenticated if they are no token."""
    if len(given) > 1 or not isinstance(given[0], str):
        raise NotAuthenticated("the call has several `authorization` values: send one token")
    scheme, token = given[0][: len(_SCHEME)], given[0][len(_SCHEME) :].strip()
    if scheme.lower() != _SCHEME or not token:
        raise NotAuthenticated("`authorization` is not `Bearer TOKEN`")
    return token


def asks_who_calls(settings: Settings) -> bool:
    """True if calls need an identity."""
    return not (settings.tls_client_ca is None and settings.token_file is None and settings.jwt_jwks is None)


def warn_if_open(settings: Settings) -> None:
    """Log a warning if other machines can reach the server, or its figures, without authentication."""
    if asks_who_calls(settings) and not _local(settings.metrics_host or settings.host):
        if settings.metrics_open:
            _log.warning(
                "ANYONE WHO REACHES THE METRICS PORT SEES THE FIGURES OF ALL TENANTS: metrics_open is set; give "
                "scrapers a token (docs/security.md), or keep the port to their network",
                metrics_port=settings.metrics_port,
            )
        elif settings.metrics_pair is None:
            _log.warning(
                "TOKENS TRAVEL UNENCRYPTED TO THE METRICS PORT: it listens beyond this machine without TLS; set "
                "metrics_tls, unless a proxy on this machine's network has it",
                metrics_port=settings.metrics_port,
            )
    if _local(settings.host):
        return
    if not asks_who_calls(settings):
        _log.warning(
            "ANYONE WHO REACHES THIS ADDRESS MAY USE, LIST, CLOSE AND UNLOAD EVERYTHING: the server listens beyond "
            "this machine and asks nobody who calls; set token_file, jwt_jwks or tls_client_ca (docs/security.md), "
            "or host 127.0.0.1",
            host=settings.host,
        )
    elif settings.tls_cert is None:
        _log.warning(
            "TOKENS AND DATA TRAVEL UNENCRYPTED: the server listens beyond this machine without TLS; set tls_cert and "
            "tls_key, unless a proxy on this machine's network has them",
            host=settings.host,
        )


def _local(host: str) -> bool:
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
