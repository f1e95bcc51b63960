"""Patterns, numbers, grammars: their automata against Python's own judgement."""

import random
import re
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble.structure import Choices, Grammar, Regex, StructureError
from scumble.structure.automaton import Budget
from scumble.structure.build import compile_tree
from scumble.structure.numbers import Numbers
from scumble.structure.pattern import parse_pattern
from scumble.structure.tree import both, without
from structure.walks import walk

atoms = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", "\\d", "é", "c?", "(a|bc)", "(?:ab){2}"])
patterns = st.lists(st.tuples(atoms, st.sampled_from(["", "*", "+", "?", "{1,2}", "{2}"])), min_size=1, max_size=4)


@given(patterns, st.lists(st.text(alphabet="abc1é\n", max_size=6), max_size=12))
def test_a_pattern_matches_what_python_matches(parts: list[tuple[str, str]], texts: list[str]) -> None:
    # "c?" followed by "?" would be lazy and by "*" an error: such pairs are wrapped
    pattern = "".join(f"(?:{atom}){times}" for atom, times in parts)
    machine = Regex(pattern).automaton(Budget())
    for text in texts:
        assert machine.accepts(text.encode()) == bool(re.fullmatch(pattern, text)), (pattern, text)


@given(patterns)
def test_random_texts_of_a_pattern_match_it(parts: list[tuple[str, str]]) -> None:
    pattern = "".join(f"(?:{atom}){times}" for atom, times in parts)
    machine = Regex(pattern).automaton(Budget())
    text = walk(machine, random.Random(1), 12).decode()
    assert re.fullmatch(pattern.replace(".", "[^\\n\\r\\u2028\\u2029]"), text)


@settings(max_examples=40)
@given(patterns, patterns, st.text(alphabet="abc1é", max_size=6))
def test_intersection_and_difference(one: list[tuple[str, str]], two: list[tuple[str, str]], text: str) -> None:
    left, right = (parse_pattern("".join(f"(?:{atom}){times}" for atom, times in parts)) for parts in (one, two))
    first, second = (compile_tree(part).accepts(text.encode()) for part in (left, right))
    assert compile_tree(both(left, right)).accepts(text.encode()) == (first and second)
    assert compile_tree(without(left, right)).accepts(text.encode()) == (first and not second)


def test_search_semantics_and_anchors() -> None:
    for pattern, yes, no in [("b", "abc", "ac"), ("^b", "bc", "ab"), ("b$", "ab", "ba"), ("^b$", "b", "bb"),
                             ("^(?:a|b)$", "a", "aa"), ("^a|b$", "ax", "xa"), ("(^a$)", "a", "ba")]:  # fmt: skip
        machine = compile_tree(parse_pattern(pattern, anchored=False))
        assert machine.accepts(yes.encode())
        assert not machine.accepts(no.encode())


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(?=a)b", "lookaround"), ("(?<!a)b", "lookaround"), ("(a)\\1", "backreferences"), ("\\bx", "boundaries"),
        ("a{2,1}", "wrong way"), ("[b-a]", "wrong way"), ("(", "without its"), ("a)", "without its"), ("*a", "repeat"),
        ("a{3}{4}", "repeat"), ("[", "without its"), ("a++", "possessive"), ("(?i)a", "not supported"),
        ("[[:alpha:]]", "POSIX"), ("x$y", "multi-line"), ("\\ud800", "no text"), ("a" * 30000, "limit"),
        ("(" * 3000 + ")" * 3000, "nested"), ("(a|b|ab){9}{9}", "repeat"), ("((a?){900}){900}", "states|took"),
        ("[^\\s\\S]", "no text"), ("\\p{Nonsense}", "property"), ("\ud800", "surrogate"),
    ],
)  # fmt: skip
def test_refused_patterns(pattern: str, words: str) -> None:
    with pytest.raises(StructureError, match=words):
        Regex(pattern).automaton(Budget())


decimals = st.decimals(-1000, 1000, places=2)


@given(
    decimals,
    decimals,
    st.booleans(),
    st.booleans(),
    st.lists(decimals, max_size=12),
    st.sampled_from([None, True, False]),
)
def test_bounds_of_numbers(
    a: Decimal, b: Decimal, low_open: bool, high_open: bool, values: list[Decimal], integer: bool | None
) -> None:
    low, high = min(a, b), max(a, b)
    numbers = Numbers(integer, low, low_open, high, high_open)
    machine = compile_tree(numbers.tree())
    for value in [*values, low, high, low.to_integral_value(), Decimal(0)]:
        for text in {f"{value:f}", f"{value.normalize():f}"}:
            if (integer and "." in text) or (text.startswith("-0") and value == 0):
                continue  # written as a whole number, and without a sign of zero
            assert machine.accepts(text.encode()) == (value in numbers), (text, numbers)


@settings(max_examples=30)
@given(st.sampled_from(["1", "3", "7", "0.5", "0.01", "2.5", "12"]), st.lists(decimals, min_size=1, max_size=20))
def test_multiples(multiple: str, values: list[Decimal]) -> None:
    numbers = Numbers(multiples=(Decimal(multiple),))
    machine = compile_tree(numbers.tree())
    for value in [*values, *(value * Decimal(multiple) for value in values)]:
        text = f"{value:f}"
        if not (text.startswith("-0") and value == 0):
            assert machine.accepts(text.encode()) == (value in numbers), text


def test_choices_are_whole_texts() -> None:
    machine = Choices.of(["no", "north", "été"]).automaton(Budget())
    assert [machine.accepts(text.encode()) for text in ("no", "north", "été", "nor", "")] == [True] * 3 + [False] * 2


@pytest.mark.parametrize("texts", [[], "abc", [1], None])
def test_choices_that_are_none(texts: object) -> None:
    with pytest.raises(StructureError):
        Choices.of(texts)  # type: ignore[arg-type]


def test_a_grammar_nests_to_its_depth() -> None:
    machine = Grammar('sum ::= part ("+" part)*   # a comment\npart ::= [0-9]+ | "(" sum ")"').automaton(Budget())
    assert machine.accepts(b"1+(2+(3))")
    assert not machine.accepts(b"1+")
    assert not machine.accepts(b"(" * 9 + b"1" + b")" * 9)


@pytest.mark.parametrize(
    ("source", "words"),
    [("", "empty"), ("a ::= b", "does not define"), ("a ::= (", "no \\)"), ("x", "no rule"), ('a ::= "x', "be read"),
     ("a ::= a", "no text"), ("a ::= *", "expected"), ('a ::= "b" a ::= "c"', "twice"), ('a ::= "b"{9999}', "limit")],
)  # fmt: skip
def test_refused_grammars(source: str, words: str) -> None:
    with pytest.raises(StructureError, match=words):
        Grammar(source).automaton(Budget())
