"""The repair task: damaged lines that are really damaged, and scores that say whether they got better."""

import json
import subprocess
import sys

import pytest

from scumble import GenerationConfig
from scumble.evaluate.functions import Function, read_functions
from scumble.evaluate.infill import held_out_cases
from scumble.evaluate.plan import Plan
from scumble.evaluate.repair import HeldOutRepair, repair_cases
from scumble.evaluate.run import evaluate
from scumble.evaluate.tasks import Case


@pytest.mark.parametrize("seed", range(5))
def test_every_case_is_a_line_of_infilling_that_is_damaged(seed):
    shipped = read_functions()
    cases = repair_cases(shipped, seed)
    whole = {case.name: case for case in held_out_cases(shipped, seed)}
    assert len(cases) > 0.9 * len(shipped)
    for case in cases:
        right = whole[case.name]
        assert (case.before, case.wanted, case.after) == (right.before, right.wanted, right.after)
        assert case.given.strip() not in ("", case.wanted)


def test_damage_is_a_function_of_the_seed_and_the_place():
    shipped = read_functions()
    assert repair_cases(shipped, 3) == repair_cases(shipped, 3)
    given = [{case.wanted: case.given for case in repair_cases(shipped, seed)} for seed in (3, 4)]
    assert given[0] != given[1]
    tail = {case.name for case in repair_cases(shipped[:30], 3)}
    assert [case for case in repair_cases(shipped, 3) if case.name in tail] == repair_cases(shipped[:30], 3)
    twice = [Function("a", "", shipped[0].text), Function("b", "", shipped[0].text)]
    assert len({case.given for seed in range(10) for case in repair_cases(twice, seed)}) > 10


def test_lines_that_cannot_be_damaged_are_left_out():
    texts = ("def f():\n    x\n", "def f():\n    'Doc.'\n")
    assert repair_cases([Function("f", "", text) for text in texts], 0) == []


CASE = Case("f:1", "p", "def f(x):\n    ", "\n", wanted="return x", given="retrun x")


@pytest.mark.parametrize(
    ("text", "exact", "reduction", "better"),
    [
        ("return x", True, 1, True),
        ("return x\n", True, 1, True),
        ("retrun x", False, 0, False),
        ("return", False, 0, False),
        ("return y", False, 0.5, True),
        ("", False, -1, False),
        ("print(" * 40, False, -1, False),
    ],
)
def test_scores(text, exact, reduction, better):
    scores = HeldOutRepair([CASE]).score(CASE, text, True)
    assert scores == {"exact": exact, "error_reduction": reduction, "better": better}


def test_the_model_is_shown_the_damaged_line(llm):
    config = GenerationConfig(max_new_tokens=16, seed=3)
    asked = HeldOutRepair([CASE]).ask(llm, CASE, config)
    request = llm.fill_request(CASE.before, CASE.after, config, CASE.given)
    wanted = llm.generate_ids(request.prompt, request.config, draft=request.draft)
    assert asked.token_ids == wanted.token_ids
    assert asked.prompt_tokens == len(request.prompt) > len(llm.fill_request(CASE.before, CASE.after).prompt)


def test_the_task_reports_its_three_figures(llm, data):
    report = json.loads(json.dumps(evaluate(llm, Plan(tasks=("repair",), data=data, overrides={"temperature": 0}))))
    (task,) = report["tasks"]
    assert (task["name"], task["status"]) == ("repair", "done")
    assert [metric["name"] for metric in task["metrics"]] == ["exact", "error_reduction", "better"]
    for own in task["variants"].values():
        quality = own["quality"]
        assert -1 <= quality["error_reduction"]["low"] <= quality["error_reduction"]["mean"] < 0, "random weights"
        assert quality["exact"]["mean"] == quality["better"]["mean"] == 0


def test_without_a_repair_marker_the_task_is_skipped(unmarked, data):
    (task,) = evaluate(unmarked, Plan(tasks=("repair",), data=data))["tasks"]
    assert task["status"] == "skipped"
    assert "<|repair|>" in task["reason"]


def test_data_without_a_line_to_damage_is_skipped(llm, tmp_path):
    path = tmp_path / "short.jsonl"
    path.write_text(json.dumps({"text": "def f():\n    x\n"}))
    (task,) = evaluate(llm, Plan(tasks=("repair",), data=path))["tasks"]
    assert (task["status"], "damaged" in task["reason"]) == ("skipped", True)


def test_damage_needs_nothing_of_training():
    code = (
        "import sys, scumble.train.damage; "
        "print([name for name in sys.modules if name in ('torch', 'numpy') or 'scumble.train.' in name])"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "['scumble.train.damage']"
