"""What the tasks ask and how they score: infilling and writing bodies. (Repair has a file of its own.)"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.evaluate.catalogue import some
from scumble.evaluate.functions import Function, read_functions
from scumble.evaluate.human_eval import body_cases, line_cases, read_problems
from scumble.evaluate.infill import HeldOutInfill, HeldOutLines, HumanEvalInfill, held_out_cases, held_out_lines
from scumble.evaluate.plan import Plan
from scumble.evaluate.write import HeldOutFunctions, HumanEvalFunctions, body_of, held_out_bodies, held_out_rests

from .conftest import FUNCTIONS


def functions(*texts: str) -> list[Function]:
    return [Function(f"f:{place}", "", text) for place, text in enumerate(texts)]


@pytest.mark.parametrize("seed", range(3))
def test_held_out_lines_restore_their_functions(seed):
    shipped = read_functions()
    cases = held_out_cases(shipped, seed)
    texts = {function.name: function.text for function in shipped}
    assert len(cases) == len(shipped)
    for case in cases:
        whole = case.before + case.wanted + case.after
        kept = texts[case.name.rsplit(":", 1)[0]]
        assert [line.rstrip() for line in whole.split("\n")] == [line.rstrip() for line in kept.split("\n")]
        assert case.wanted.strip() == case.wanted != ""
        assert not case.before.rsplit("\n", 1)[-1].strip(), "the hole begins behind the indentation"


@pytest.mark.parametrize("seed", range(3))
def test_holes_of_several_lines_and_functions_cut_short_restore_their_functions(seed):
    shipped = read_functions()
    texts = {function.name: function.text for function in shipped}
    holes, rests = held_out_lines(shipped, seed), held_out_rests(shipped, seed)
    assert len(holes) == len(rests) > 100
    assert {case.wanted.count("\n") > 0 for case in holes} == {True}
    for case in [*holes, *rests]:
        whole = (case.before + case.wanted + case.after).rstrip("\n")
        kept = texts[case.name.rsplit(":", 1)[0]].rstrip("\n")
        assert [line.rstrip() for line in whole.split("\n")] == [line.rstrip() for line in kept.split("\n")]
    for case in rests:
        assert not case.after
        assert case.wanted.strip()
        assert case.wanted.startswith("\n"), "cut at the end of a line"


def test_functions_of_one_line_have_no_lines_to_miss():
    short = functions("def f():\n    return 1\n")
    assert held_out_lines(short, 0) == held_out_rests(short, 0) == []


def test_several_lines_are_scored_by_what_they_make_of_their_place():
    task = HeldOutLines(held_out_lines(functions("def f(x):\n    y = x + 1\n    return y\n"), 0))
    case = task.cases[0]
    assert case.wanted == "y = x + 1\n    return y"
    assert task.score(case, case.wanted, True) == {"edit": 1, "exact": True, "parses": True}
    scores = task.score(case, "return (x", True)
    assert not scores["parses"]
    assert 0 < scores["edit"] < 0.6


def test_held_out_lines_are_chosen_by_the_seed_and_the_place():
    shipped = read_functions()
    assert held_out_cases(shipped, 1) == held_out_cases(shipped, 1)
    assert held_out_cases(shipped, 1) != held_out_cases(shipped, 2)
    assert held_out_cases(shipped, 1)[:20] == held_out_cases(shipped[:20], 1)


def test_functions_without_a_body_make_no_case():
    assert held_out_cases(functions('def f():\n    """Doc."""\n'), 0) == []
    assert held_out_bodies(functions("def f():\n    return 1\n", 'def f():\n    """Doc."""\n')) == []


def test_a_held_out_line_is_scored_as_it_comes():
    task = HeldOutInfill(held_out_cases(functions(FUNCTIONS[1]), 0))
    case = task.cases[0]
    assert case.wanted == "return 3.14159 * radius ** 2"
    assert task.score(case, f" {case.wanted}\n", True) == {"exact": True, "edit": 1}
    scores = task.score(case, f"{case.wanted}\n    return 0", True)
    assert not scores["exact"]
    assert 0.5 < scores["edit"] < 1


def test_a_humaneval_line_is_run(human_eval):
    task = HumanEvalInfill(line_cases(read_problems(human_eval)))
    case = task.cases[0]
    assert task.score(case, "y = x + x", True) == {"passed": True, "exact": True}
    assert task.score(case, "y = 2 * x", True) == {"passed": True, "exact": False}
    assert task.score(case, "y = x", True) == {"passed": False, "exact": False}
    assert task.score(case, "import os; os._exit(0)", True) == {"passed": False, "exact": False}
    assert task.score(case, 'return 2 * x\n    """', True)["passed"] is False, "a text that swallows its tests"


def test_a_humaneval_body_is_run(human_eval):
    task = HumanEvalFunctions(body_cases(read_problems(human_eval)))
    case = task.cases[0]
    assert task.score(case, "\n    return 2 * x\n", True) == {"passed": True, "ended": True, "parses": True}
    assert task.score(case, "\n    return 2 * x\n\nprint(double(", False) == {"passed": True, "ended": False}
    assert task.score(case, "\n    return x\n", True) == {"passed": False, "ended": True, "parses": True}
    assert task.score(case, "\n  return (", True) == {"passed": False, "ended": True, "parses": False}


def test_a_held_out_body_says_whether_it_parses_only_where_it_ended():
    task = HeldOutFunctions(held_out_bodies(functions(*FUNCTIONS)))
    case = task.cases[0]
    assert len(task.cases) == 3
    assert case.before + case.wanted == FUNCTIONS[0]
    assert task.score(case, case.wanted, True) == {"ended": True, "parses": True, "edit": 1}
    broken = task.score(case, "\n    return (", True)
    assert (broken["ended"], broken["parses"]) == (True, False)
    assert 0 < broken["edit"] < 1
    assert task.score(case, "\n    return (", False) == {"ended": False, "edit": broken["edit"]}


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("", ""),
        ("\n    return 1", "\n    return 1"),
        ("\n    return 1\n\n\n", "\n    return 1\n\n\n"),
        ("\n    return 1\n\ndef g():\n    pass\n", "\n    return 1\n"),
        ("\n    a\n# note\n    b", "\n    a"),
        ("  # more\n\treturn 1\nx = 1", "  # more\n\treturn 1"),
        ("print(1)\nprint(2)", "print(1)"),
    ],
)
def test_a_body_ends_where_the_function_does(text, body):
    assert body_of(text) == body


INDENTED = st.lists(st.sampled_from(["    x = 1", "", "\ty", "      ", "    # note"]), max_size=5)


@given(INDENTED, st.text("xy =\n#", max_size=20))
def test_whatever_follows_a_function_is_not_its_body(lines, rest):
    body = "\n".join(["", *lines])
    assert body_of(body) == body
    assert body_of(f"{body}\nz{rest}") == body
    assert body_of(body_of(body + rest)) == body_of(body + rest)


@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 2**63 - 1))
def test_a_limit_draws_so_many_cases_in_their_order(count, limit, seed):
    chosen = some(range(count), Plan(limit=limit, seed=seed))
    assert len(chosen) == (min(limit, count) if limit else count)
    assert chosen == sorted(set(chosen))
    assert chosen == some(range(count), Plan(limit=limit, seed=seed))
