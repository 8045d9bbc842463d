"""Choices: the seeded samplers against plain Python, their statistics, and what no row takes from another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from streamcell.card import Generation, Signature, Tensor
from streamcell.service.generation.sampling import Chooser, Feedback, Recipe, uniforms

DRAWS = 20_000
MASK = 2**64 - 1


def chooser(head: Any, size: int, **more: Any) -> Chooser:
    dtype = "int64" if more.get("encoding") == "index" else "float32"
    shape = () if more.get("encoding") == "index" else (size,)
    signature = Signature(
        inputs=(Tensor(name="x", dtype=dtype, step_shape=shape),),  # type: ignore[arg-type]
        outputs=(Tensor(name="y", dtype="float32", step_shape=(size,)),),
    )
    return Chooser(signature, Generation(output="y", input="x", head=head, **more))


def sample(head: Any, y: Any, recipe: Recipe, **more: Any) -> Any:
    """What each of many step indices draws from one output."""
    y = np.tile(np.asarray(y, np.float32), (DRAWS, 1))
    chosen, fine = chooser(head, y.shape[1], **more).choose(y, [recipe] * DRAWS, np.arange(DRAWS))
    assert fine.all()
    return chosen


def mix(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
    return word ^ word >> 31


def test_uniforms_are_those_of_splitmix64() -> None:
    # The generator's own first outputs from the state 0, as its authors' code prints them.
    assert [mix(0x9E3779B97F4A7C15 * k & MASK) for k in (1, 2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    seeds, counters = [0, 1, 2**64 - 1, 12345], [0, 7, 2**40, 3]
    given = uniforms(np.array(seeds, np.uint64), np.array(counters, np.uint64), 5)
    for row, (seed, counter) in enumerate(zip(seeds, counters, strict=True)):
        state = mix(mix(seed) + counter * 0x9E3779B97F4A7C15 & MASK)
        for at in range(5):
            state = state + 0x9E3779B97F4A7C15 & MASK
            assert given[row, at] == (mix(state) >> 11) / 2**53


def test_uniforms_are_uniform_along_seeds_step_indices_and_elements() -> None:
    many = np.arange(DRAWS, dtype=np.uint64)
    zero = np.zeros(DRAWS, np.uint64)
    for drawn in (
        uniforms(many, zero, 1)[:, 0],
        uniforms(zero, many, 1)[:, 0],
        uniforms(zero[:1], zero[:1], DRAWS)[0],
    ):
        counts = np.histogram(drawn, 50, (0, 1))[0]
        chi = ((counts - DRAWS / 50) ** 2 / (DRAWS / 50)).sum()
        assert chi < 90  # 49 degrees of freedom: one in 3,000
        assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.03


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (3.0, 4), (1.0, 1)])
def test_classes_come_as_often_as_they_should(temperature: float, top_k: int) -> None:
    y = np.array([0.3, -1.0, 2.0, 1.2, -np.inf, 0.9, 1.2])
    chosen = sample("categorical", y, Recipe(Feedback.SAMPLE, temperature, top_k, 9))
    kept = np.where(y >= np.sort(y)[-top_k] if top_k else True, y, -np.inf)
    wanted = np.exp(kept / temperature)
    wanted *= DRAWS / wanted.sum()
    counts = np.bincount(chosen, minlength=len(y))
    assert not counts[wanted == 0].any()
    some = wanted > 0
    assert ((counts - wanted)[some] ** 2 / wanted[some]).sum() < 25  # at most 6 degrees of freedom


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (2.0, 2)])
def test_elements_are_on_as_often_as_they_should_be_and_independent(temperature: float, top_k: int) -> None:
    y = np.array([0.0, 3.0, -2.0, -np.inf, 1.0])
    chosen = sample("bernoulli", y, Recipe(Feedback.SAMPLE, temperature, top_k, 4))
    wanted = 1 / (1 + np.exp(-y / temperature))
    if top_k:
        wanted[y < np.sort(y)[-top_k]] = 0
    np.testing.assert_allclose(chosen.mean(0), wanted, atol=0.015)
    assert set(np.unique(chosen)) <= {0.0, 1.0}
    moving = [at for at in range(5) if 0 < wanted[at] < 1]
    between = np.corrcoef(chosen[:, moving].T) - np.eye(len(moving))
    assert np.abs(between).max() < 0.03


def test_real_samples_are_normal_about_the_output() -> None:
    y = [1.0, -2.0]
    chosen = sample("real", y, Recipe(Feedback.SAMPLE, 2.0, 0, 3), deviation=(0.5, 0.0))
    np.testing.assert_array_equal(chosen[:, 1], -2.0)
    z = (chosen[:, 0] - 1.0) / (2.0 * 0.5)
    for sigma in (-2.0, -1.0, 0.0, 0.5, 1.0, 2.0):
        assert (z < sigma).mean() == pytest.approx(0.5 * math.erfc(-sigma / math.sqrt(2)), abs=0.012)


def test_a_choice_depends_on_its_own_row_alone() -> None:
    rng = np.random.default_rng(1)
    for head, size, more in (
        ("categorical", 50, {}),
        ("bernoulli", 88, {}),
        ("real", 6, {"deviation": 0.3}),
    ):
        one = chooser(head, size, **more)
        y = rng.normal(size=(37, size)).astype(np.float32) * 3
        feedback = [Feedback.VALUE if head == "real" else Feedback.ARGMAX, Feedback.SAMPLE]
        recipes = [
            Recipe(feedback[row % 2], 0.5 + row / 10, 0 if head == "real" else row % 7, row * 3)
            for row in range(37)
        ]
        counters = rng.integers(0, 1000, 37)
        together, _ = one.choose(y, recipes, counters)
        for row in range(37):
            alone, _ = one.choose(y[row : row + 1], [recipes[row]], counters[row : row + 1])
            np.testing.assert_array_equal(alone[0], together[row])
        some = rng.permutation(37)[:11]
        part, _ = one.choose(y[some], [recipes[row] for row in some], counters[some])
        np.testing.assert_array_equal(part, together[some])


def test_the_likeliest_are_chosen_and_encoded() -> None:
    y = np.array([[0.0, 2.0, 1.0], [5.0, -np.inf, 4.0]], np.float32)
    recipes, counters = [Recipe(Feedback.ARGMAX)] * 2, np.zeros(2, np.int64)
    classes, _ = chooser("categorical", 3).choose(y, recipes, counters)
    assert classes.tolist() == [1, 0]
    np.testing.assert_array_equal(
        chooser("categorical", 3).encode(classes), np.eye(3, dtype=np.float32)[[1, 0]]
    )
    index = chooser("categorical", 3, encoding="index", offset=40).encode(classes)
    assert (index.tolist(), index.dtype.name) == ([[41], [40]], "int64")
    bits, _ = chooser("bernoulli", 3).choose(y, recipes, counters)
    assert bits.tolist() == [[0, 1, 1], [1, 0, 1]]
    assert np.frombuffer(chooser("categorical", 3).start(2), np.float32).tolist() == [0, 0, 1]


@pytest.mark.parametrize("head", ["categorical", "bernoulli", "real"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("feedback", [Feedback.ARGMAX, Feedback.SAMPLE])
def test_outputs_that_nothing_can_be_chosen_from_are_told(head: Any, bad: float, feedback: Feedback) -> None:
    more = {"deviation": 0.1} if head == "real" else {}
    y = np.zeros((3, 4), np.float32)
    y[1, 2] = bad
    recipe = Recipe(Feedback.VALUE if head == "real" and feedback is Feedback.ARGMAX else feedback)
    _, fine = chooser(head, 4, **more).choose(y, [recipe] * 3, np.arange(3))
    assert fine.tolist() == [True, False, True]


def test_logits_may_rule_classes_out_but_not_all() -> None:
    y = np.array([[-np.inf, 0.0], [-np.inf, -np.inf]], np.float32)
    for feedback in (Feedback.ARGMAX, Feedback.SAMPLE):
        chosen, fine = chooser("categorical", 2).choose(y, [Recipe(feedback)] * 2, np.zeros(2, np.int64))
        assert fine.tolist() == [True, False]
        assert chosen[0] == 1


def test_a_value_beyond_the_inputs_range_is_told() -> None:
    signature = Signature(
        inputs=(Tensor(name="x", dtype="float16", step_shape=(1,)),),
        outputs=(Tensor(name="y", dtype="float32", step_shape=(1,)),),
    )
    one = Chooser(signature, Generation(output="y", input="x", head="real"))
    chosen, fine = one.choose(
        np.array([[1.5], [1e6]], np.float32), [Recipe(Feedback.VALUE)] * 2, np.arange(2)
    )
    assert (chosen[0].tolist(), chosen.dtype.name, fine.tolist()) == ([1.5], "float16", [True, False])
