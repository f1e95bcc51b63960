"""Which texts are Python, or can still become Python: for choosing among candidates."""

from __future__ import annotations

import ast
import inspect
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.llm import embedded_path
from scumble.text import Tokenizer
from scumble.text.infill import encode_infill, surroundings
from scumble.text.python import begins_python, is_python, python_check

TOKENIZER = Tokenizer.from_folder(embedded_path())
SOURCES = [inspect.getsource(module) for module in (ast, textwrap, inspect)]


@pytest.mark.parametrize("source", SOURCES, ids=["ast", "textwrap", "inspect"])
def test_every_beginning_of_python_is_one(source):
    assert is_python(source)
    for end in range(0, len(source), 997):
        assert begins_python(source[:end])


@given(st.integers(0, 60), st.sampled_from(SOURCES))
def test_indented_python_is_python(number, source):
    functions = [one for one in ast.walk(ast.parse(source)) if isinstance(one, ast.FunctionDef)]
    node = functions[number % len(functions)]
    lines = source.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno]
    assert is_python("".join(lines))


@pytest.mark.parametrize(
    "text",
    ["def f(:\n", "x y\n", "    x = 1\n  y = 2\n", "x = 'a\n", ")\n", "if x:\nreturn\n", "\0\n", "(" * 5000 + "\n"],
)
def test_what_no_further_line_can_mend_is_not(text):
    assert not begins_python(text)
    assert not is_python(text)


@pytest.mark.parametrize(
    "text", ["def f():\n", "x = (1,\n", '"""abc\n', "try:\n    x\n", "if x:\n    y\nelse:\n", "@f\n"]
)
def test_what_is_not_complete_can_still_become_python(text):
    assert begins_python(text)
    assert not is_python(text)


@pytest.mark.parametrize("text", ["", "x = 'ab", "x = 1\nretur", "x = 1\nx y"])
def test_a_line_without_an_end_is_not_judged(text):
    assert begins_python(text)


def judged(before: str, answer: str, ended: bool, stops: tuple[str, ...] = ()) -> bool:
    return python_check(TOKENIZER, TOKENIZER.encode(before), stops)(TOKENIZER.encode(answer), ended)


def test_an_answer_is_judged_with_the_prompt_before_it():
    assert judged("def f(x):", "\n    return x\n", ended=True)
    assert not judged("def f(x):", "\nreturn x\n", ended=True)
    assert judged("def f(x):", "\n    if x:\n", ended=False)
    assert not judged("def f(x):", "\n    if x:\n", ended=True)


def test_a_stop_string_ends_what_is_judged():
    assert judged("def f(x):", "\n    return x\n\ndef )", ended=False, stops=("\ndef", "\nclass"))
    assert not judged("def f(x):", "\n    if x:\n\ndef )", ended=False, stops=("\ndef",))


@pytest.mark.parametrize("damaged", [None, "retrun x"])
def test_a_filled_hole_is_judged_with_both_sides(damaged):
    ids, _ = encode_infill(TOKENIZER, "def f(x):\n    ", "\n    pass\n", damaged)
    assert surroundings(TOKENIZER, ids) == ("def f(x):\n    ", "\n    pass\n")
    check = python_check(TOKENIZER, ids, ())
    assert check(TOKENIZER.encode("return x"), True)
    assert not check(TOKENIZER.encode("return ("), True)
    assert check(TOKENIZER.encode("return ("), False)
