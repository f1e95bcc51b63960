"""Functions from files, and the places in them that tasks are made of."""

import gzip
import os
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.errors import DataError
from scumble.evaluate.functions import body_lines, docstring_end, read_functions
from scumble.evaluate.human_eval import read_problems

from .conftest import FUNCTIONS, write_lines


def test_the_shipped_functions_are_functions():
    functions = read_functions()
    assert len(functions) == 146
    assert len({function.package for function in functions}) == 22
    assert len({function.name for function in functions}) == 146
    assert all(body_lines(function.text) for function in functions)
    assert all(function.text.endswith("\n") and not function.text[0].isspace() for function in functions)


def test_a_file_of_one_s_own(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes('{"text": "a = 1\\n\\n", "package": "p"}\r\n\n{"text": "b\u2028\x85", "package": 5}'.encode())
    one, two = read_functions(path)
    assert (one.name, one.package, one.text) == ("p:1", "p", "a = 1\n")
    assert (two.name, two.package, two.text) == ("own.jsonl:3", "", "b\n"), "U+2028 ends no line of JSON"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no functions"),
        (b"\n \n", "holds no functions"),
        (b'{"text": "x"}\nnonsense\n', "line 2: not JSON"),
        (b'{"text": "x"}\n{"text": "y"\n', "line 2: not JSON"),
        (b'{"text": "x"}\n\n' + b"[" * 100_000, "line 3: not JSON"),
        (b'{"text": "x"}\n[1]\n', "line 2: must be an object"),
        (b'{"text": "x"}\n{"txt": "x"}\n', "line 2: must be an object"),
        (b'{"text": 5}\n', "line 1: must be an object"),
        (b'{"text": " \\n "}\n', "line 1: must be an object"),
        (b'{"text": "\\ud800"}\n', "line 1: not valid Unicode"),
        (b'{"text": "x", "package": "\\udcff"}\n', "line 1: not valid Unicode"),
        (b'{"text": "x"}\n{"text": "\xff"}\n', "line 2: not UTF-8"),
    ],
)
def test_files_that_are_none(tmp_path, content, said):
    path = tmp_path / "functions.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_functions(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_no_file_and_a_folder(tmp_path):
    for path in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(DataError, match="cannot be read") as caught:
            read_functions(path)
        assert str(path) in str(caught.value)


@given(st.lists(st.text(min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=4))
def test_texts_come_back_as_they_were_but_for_their_ends(tmp_path_factory, texts):
    path = write_lines(tmp_path_factory.getbasetemp() / "any.jsonl", [{"text": text} for text in texts])
    assert [function.text for function in read_functions(path)] == [text.rstrip() + "\n" for text in texts]


SHAPES = {
    # name: (text, numbers of the body's lines, what the docstring ends)
    "plain": ("def f(a):\n    b = a\n\n    return b\n", [1, 3], None),
    "docstring": ('def f(a):\n    """Doc."""\n    return a\n', [2], 'def f(a):\n    """Doc."""'),
    "long docstring": (
        'def f(a):\n    """Doc.\n\n    More.\n    """\n\n    # why\n    return a\n',
        [7],
        'def f(a):\n    """Doc.\n\n    More.\n    """',
    ),
    "long signature": (
        "def f(\n    a,\n    b=1,\n) -> int:\n    'Doc.'\n    return a\n",
        [5],
        "def f(\n    a,\n    b=1,\n) -> int:\n    'Doc.'",
    ),
    "decorated, async": (
        "@one\n@two(3)\nasync def f():\n    '''Doc.'''\n    await g()\n",
        [4],
        "@one\n@two(3)\nasync def f():\n    '''Doc.'''",
    ),
    "nested": ("def f():\n    def g():\n        'Doc.'\n        return 1\n    return g\n", [1, 2, 3, 4], None),
    "docstring alone": ('def f():\n    """Doc."""\n', [], None),
    "body beside the docstring": ('def f():\n    """Doc."""; return 1\n', [1], None),
    "no docstring but a number": ("def f():\n    5\n    return 1\n", [1, 2], None),
    "f-string": ("def f():\n    f'{1}'\n    return 1\n", [1, 2], None),
    "imports before": ('import os\n\ndef f():\n    "Doc."\n    return os\n', [4], 'import os\n\ndef f():\n    "Doc."'),
    "two functions": ("def f():\n    return 1\ndef g():\n    return 2\n", [0, 1, 2, 3], None),
    "class": ("class C:\n    def f(self):\n        pass\n", [0, 1, 2], None),
    "no Python": ("def f(:\n\n    '''Doc.\n", [0, 2], None),
    "too deep for the parser": ("x = " + "-" * 100_000 + "1\n", [0], None),
}


@pytest.mark.parametrize("name", SHAPES)
def test_bodies_and_docstrings(name):
    text, lines, start = SHAPES[name]
    assert body_lines(text) == lines
    end = docstring_end(text)
    assert (None if end is None else text[:end]) == start


def test_windows_line_ends_change_nothing():
    text = FUNCTIONS[0].replace("\n", "\r\n")
    assert body_lines(text) == body_lines(FUNCTIONS[0])
    assert text[: docstring_end(text)].splitlines() == FUNCTIONS[0][: docstring_end(FUNCTIONS[0])].splitlines()


STATEMENTS = st.lists(
    st.sampled_from(["x = 1", "if x:\n    y = 2", "# a note", "", "return (x,\n        y)", "'''text\n\nmore'''"]),
    min_size=1, max_size=6,
)  # fmt: skip


@given(STATEMENTS, st.sampled_from(["'Doc.'", '"""Doc.\n\n  More.\n"""']))
def test_behind_a_docstring_lies_the_whole_body(statements, docstring):
    body = textwrap.indent("\n".join([*statements, "pass"]), "    ")
    head = f"def f(x, y=2):\n{textwrap.indent(docstring, '    ')}"
    text = f"{head}\n{body}\n"
    assert text[: docstring_end(text)] == head
    lines = text.split("\n")
    first = body_lines(text)[0]
    assert first >= head.count("\n") + 1
    assert body_lines(text) == [number for number in range(first, len(lines)) if lines[number].strip()]
    assert all(not line.strip() or "#" in line for line in lines[head.count("\n") + 1 : first]), "only notes before"


@given(st.text("def f():\n\t 'x#\\\"", max_size=40))
def test_any_text_has_lines_and_perhaps_a_docstring(text):
    lines = text.split("\n")
    assert all(lines[number].strip() for number in body_lines(text))
    end = docstring_end(text)
    assert end is None or 0 < end <= len(text)


# --- files of strangers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_functions, read_problems])
def test_pipes_devices_and_depth_are_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "deep.jsonl").write_text('{"text": "x", "a": ' + "[" * 900 + "]" * 900 + "}")
    with pytest.raises(DataError, match="is a named pipe, not a regular file"):
        read(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="is a device, not a regular file"):
        read(tmp_path / "zero.jsonl")
    with pytest.raises(DataError, match="nested too deep"):
        read(tmp_path / "deep.jsonl")


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("scumble.evaluate.human_eval.MOST", 1000)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b" " * 100_000))
    with pytest.raises(DataError, match="unpacks to more than 1,000 bytes"):
        read_problems(tmp_path / "bomb.jsonl.gz")
