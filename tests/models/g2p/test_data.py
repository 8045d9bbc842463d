"""Letters to phonemes: the table of symbols, the split, the error rates, the batches."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from streamcell.models import DataError
from streamcell.models.data.g2p import (
    LETTERS,
    Dictionary,
    Symbols,
    aligned_data,
    collect,
    g2p_data,
    part_of,
)
from streamcell.models.training.batches import in_order, shuffled
from streamcell.models.training.g2p_evaluation import count_errors, edit_distance


def test_the_dictionary_is_whole_and_split_by_word(dictionary: Dictionary) -> None:
    assert dictionary.about["entries"] == 135166
    assert dictionary.about["words"] == len(dictionary.words) == 126052
    parts = {part: dictionary.part(part) for part in ("train", "valid", "test")}
    assert {part: len(words) for part, words in parts.items()} == {
        "train": 110891,
        "valid": 2577,
        "test": 12584,
    }
    assert sum(map(len, parts.values())) == len(dictionary.words)
    assert dictionary.words["cat"] == [("K", "AE", "T")]
    assert len(dictionary.words["tomato"]) == 2


def test_a_words_part_depends_on_the_word_alone() -> None:
    # Held fixed: with another split new figures could not be set beside old ones.
    parts = {"cat": "train", "tomato": "train", "diver": "test", "advice": "test", "bacall": "valid"}
    assert {word: part_of(word) for word in parts} == parts


def test_pronunciations_that_differ_in_stress_alone_are_one_without_it() -> None:
    entries = [("x", ["AH0", "B"]), ("x", ["AH1", "B"]), ("x", ["B", "AH1"])]
    plain = collect(entries, stress=False, about={})
    assert plain.words == {"x": [("AH", "B"), ("B", "AH")]}
    assert collect(entries, stress=True, about={}).about["pronunciations"] == 3


def test_an_entry_outside_the_table_is_refused() -> None:
    with pytest.raises(DataError, match=r"entry 2, 'b4' 'B'"):
        collect([("b", ["B"]), ("b4", ["B"])], stress=False, about={})


@pytest.mark.parametrize(("stress", "phonemes"), [(False, 39), (True, 69)])
def test_the_table_is_letters_the_boundary_and_phonemes(stress: bool, phonemes: int) -> None:
    symbols = Symbols(stress=stress)
    assert len(symbols.phonemes) == len(set(symbols.phonemes)) == phonemes
    assert (symbols.tokens, symbols.classes, symbols.go) == (29 + 1 + phonemes, 1 + phonemes, 29)
    said = ("K", "AE1", "T") if stress else ("K", "AE", "T")
    assert symbols.pronunciation([*symbols.classes_of(said), 0, 5]) == said
    assert Symbols.of(json.loads(json.dumps(symbols.about))) == symbols


def test_words_are_spelled_forwards_or_backwards() -> None:
    assert [LETTERS[token] for token in Symbols().spell("Cat")] == ["c", "a", "t"]
    assert [LETTERS[token] for token in Symbols(reverse=True).spell("cat")] == ["t", "a", "c"]
    with pytest.raises(DataError, match=r"the word 'naïve' contains 'ï'"):
        Symbols().spell("naïve")
    with pytest.raises(DataError, match="at least one letter"):
        Symbols().spell("")


def test_another_table_of_symbols_is_refused() -> None:
    plain = Symbols().about
    for phonemes in (["K"], [*plain["phonemes"], "K Q"], [*plain["phonemes"][:-1], "Q"], None, 39):
        with pytest.raises(DataError, match="another table"):
            Symbols.of({**plain, "phonemes": phonemes})


def slow_distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(
        slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1, slow_distance(a[1:], b[1:]) + (a[0] != b[0])
    )


def test_edit_distance_is_the_fewest_edits() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        a, b = ("".join(rng.choice(list("abc"), rng.integers(0, 6))) for _ in range(2))
        assert edit_distance(a, b) == slow_distance(a, b), (a, b)


def test_the_nearest_of_several_references_counts() -> None:
    errors = count_errors([("abc", ["abd", "abc"]), ("abc", ["xyz", "abcd"]), ("", ["ab"])])
    assert (errors.words, errors.wrong, errors.edits, errors.phonemes) == (3, 2, 3, 3 + 4 + 2)
    assert errors.wer == pytest.approx(2 / 3)
    assert errors.per == pytest.approx(3 / 9)
    with pytest.raises(ValueError, match="needs a reference"):
        count_errors([("a", [])])


def test_sequences_are_letters_the_boundary_and_phonemes(few: Dictionary) -> None:
    symbols = Symbols(reverse=True)
    data = g2p_data(Dictionary({"cat": [("K", "AE", "T")] * 1, **few.words}, few.about), symbols)
    assert (data.input_size, data.output_size) == (symbols.tokens, symbols.classes)
    series = next(
        one for one in (*data.train, *data.valid, *data.test) if one.x[:3].tolist() == symbols.spell("cat")
    )
    k, ae, t = symbols.classes_of(["K", "AE", "T"])
    assert series.x[3:].tolist() == [29, 29 + k, 29 + ae, 29 + t]
    assert series.y.tolist() == [-1, -1, -1, k, ae, t, 0]
    assert series.asked(data.distribution) == 4


def test_a_batch_is_of_words_of_one_length_and_padding_asks_nothing(few: Dictionary) -> None:
    data = g2p_data(few, Symbols())
    batches = shuffled(data, batch_size=16, window=64, rng=np.random.default_rng(1))
    assert sum(len(batch.x) for batch in batches) == len(data.train)
    assert sum(batch.counted(data.distribution) for batch in batches) == data.sizes["train"]["timesteps"]
    for batch in (*batches, *in_order(data.valid, 16)):
        letters = (batch.x < len(LETTERS)).sum(1)
        assert len(set(letters.tolist())) == 1
        beyond = torch.arange(batch.x.shape[1]) >= batch.lengths[:, None]
        assert (batch.x[beyond] >= len(LETTERS)).all()
        assert (batch.y[beyond] == -1).all()


def test_each_letter_of_an_aligned_word_says_a_part_of_it(few: Dictionary) -> None:
    spoken = {**few.words, "bbq": [("B", "AA", "R", "B", "IH", "K", "Y", "UW")]}
    words = Dictionary(spoken, few.about)
    data = aligned_data(words, Symbols(reverse=True))
    symbols = Symbols.of(json.loads(json.dumps(data.about)))
    assert symbols.chunks[0] == ""
    assert (data.input_size, data.output_size) == (symbols.tokens, symbols.classes)
    for split in ("train", "valid", "test"):
        part = words.part(split)
        assert data.words[split] == part
        found: dict[str, list[tuple[str, ...]]] = {}
        for one in data.part(split):
            asked = one.y >= 0
            word = "".join(LETTERS[token] for token in reversed(one.x[~asked].tolist()))
            assert one.x[len(word) :].tolist() == [29, *(one.y[asked][:-1] + 29)]
            assert one.asked(data.distribution) == len(word) + 1
            found.setdefault(word, []).append(symbols.pronunciation(one.y[asked].tolist()))
        for word, all_of in found.items():
            assert set(all_of) <= set(part[word])
        pronunciations = sum(map(len, part.values()))
        assert len(data.part(split)) == pronunciations - data.about["without_alignment"][split]
    # More than two phonemes a letter.
    assert data.about["without_alignment"][part_of("bbq")] >= 1
    # Many of the shortest words are initials, whose pairs are too rare among so few words.
    assert sum(data.about["without_alignment"].values()) < 0.3 * len(data.train)


@pytest.mark.parametrize("symbols", [Symbols(), Symbols(reverse=True, chunks=("",))])
def test_only_words_read_backwards_are_aligned_and_only_once(symbols: Symbols, few: Dictionary) -> None:
    with pytest.raises(DataError, match="read last letter first, and find their chunks"):
        aligned_data(few, symbols)
