"""What reads bytes by hand, held against a second reader on seeded mutations; `make fuzz` looks further."""

from __future__ import annotations

import random
from types import FunctionType

import pytest

from . import parsers
from .mutations import MUTATIONS, mutated


@pytest.mark.parametrize("target", parsers.TARGETS)
def test_a_reader_finds_what_a_second_one_finds(target: str) -> None:
    rng = random.Random(29)
    known = parsers.seeds(target)
    for data in known:
        parsers.TARGETS[target](data)
    for _ in range(600):
        parsers.TARGETS[target](mutated(rng, rng.choice(known), known))


def test_every_reader_can_be_fuzzed() -> None:
    """Coverage guides the fuzzer through Python functions: each reader has some."""
    for module in parsers.READERS:
        assert any(isinstance(each, FunctionType | type) for each in vars(module).values())


@pytest.mark.parametrize("mutation", sorted(set(MUTATIONS), key=lambda each: each.__name__))
def test_no_mutation_makes_an_honest_clients_mark(mutation: object) -> None:
    from .honest import MARK
    from .recorded import recorded

    rng = random.Random(3)
    for each in recorded():
        for message in each.messages:
            assert MARK not in message
            for _ in range(20):
                if message:
                    assert MARK not in mutation(rng, message, each.messages)  # type: ignore[operator]
