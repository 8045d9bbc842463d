"""Two tenants try every method on each other's things; an operator may. A method that is not in the matrix fails it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamcell.client.local_server import ServerProcess
from tests.support.every_method import METHODS
from tests.support.two_tenants import MATRIX, Scene, scene_on

pytestmark = pytest.mark.conformance


@pytest.fixture
def scene(tenants: ServerProcess) -> Iterator[Scene]:
    with scene_on(tenants.target) as made:
        yield made


def test_the_matrix_has_every_method() -> None:
    assert set(MATRIX) == {method.full_name for method in METHODS}


@pytest.mark.parametrize("method", MATRIX)
def test_a_tenant_reaches_nothing_of_anothers(scene: Scene, method: str) -> None:
    MATRIX[method](scene)
