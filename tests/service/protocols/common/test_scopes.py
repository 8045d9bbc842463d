"""What the server remembers of tenants: all that counts, and of those that have gone nothing."""

from __future__ import annotations

from typing import Any

import pytest

from streamcell.service.access.access_errors import QuotaExceeded
from streamcell.service.access.identity import Identity
from streamcell.service.protocols.common import scopes as module
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import Limits
from streamcell.service.protocols.common.scopes import Scopes
from streamcell.service.sessions.table import SessionTable

MOST = 4
LIMITS = Limits(
    max_message_bytes=1 << 20,
    max_steps_per_message=1,
    allow_non_finite=False,
    max_generate_steps=1,
    max_beam_width=1,
)


@pytest.fixture
def scopes(monkeypatch: pytest.MonkeyPatch) -> Scopes[Any]:
    monkeypatch.setattr(module, "_MOST", MOST)
    nothing: Any = None
    return Scopes(CallContext(nothing, SessionTable(idle_timeout_s=0), nothing, LIMITS))


def of(scopes: Scopes[Any], tenant: str) -> CallContext[Any]:
    return scopes.of(Identity(tenant, "someone", operator=False))


def test_any_number_of_tenants_may_come_one_after_another(scopes: Scopes[Any]) -> None:
    for number in range(10 * MOST):
        assert of(scopes, f"tenant {number}").tenant == f"tenant {number}"
    assert len(scopes._scopes) <= MOST


def test_a_tenant_with_something_live_is_kept_and_too_many_of_them_are_refused(scopes: Scopes[Any]) -> None:
    grants = [of(scopes, f"busy {number}").grant for number in range(MOST)]
    for grant in grants:
        assert grant is not None
        grant.take_sessions(1)
    with pytest.raises(QuotaExceeded, match="4 tenants have sessions") as raised:
        of(scopes, "another")
    assert raised.value.facts["quota"] == "tenants"
    assert of(scopes, "busy 0").grant is grants[0]
    assert grants[1] is not None
    grants[1].give_sessions(1)
    of(scopes, "another")
    assert [of(scopes, f"busy {number}").grant is grants[number] for number in (0, 2, 3)] == [True] * 3


def test_a_call_that_has_begun_and_a_later_one_share_their_tenants_quota(scopes: Scopes[Any]) -> None:
    begun = of(scopes, "slow")
    for number in range(3 * MOST):
        of(scopes, f"tenant {number}")
    assert ("slow", False) not in scopes._scopes
    assert of(scopes, "slow").grant is begun.grant


def test_a_tenants_operators_have_a_grant_of_their_own(scopes: Scopes[Any]) -> None:
    operators = scopes.of(Identity("acme", "ops", operator=True)).grant
    assert operators is not None
    assert operators.operator
    assert operators is not of(scopes, "acme").grant
