"""A report as a person sees it."""

import io

import pytest
from rich.console import Console

from scumble.evaluate import Plan, evaluate
from scumble.evaluate.table import estimate, percent, print_report, two


def printed(report, width: int = 140) -> str:
    out = io.StringIO()
    print_report(report, Console(file=out, width=width))
    return out.getvalue()


@pytest.fixture(scope="module")
def report(llm, data, human_eval):
    tasks = ("loss", "infill-humaneval", "repair")
    return evaluate(
        llm, Plan(tasks=tasks, data=data, human_eval=human_eval, limit=2, overrides={"max_denoising_steps": 1})
    )


def test_done_tasks_are_tables(report):
    text = printed(report)
    for said in ("tiny,", "seed 0", "held-out loss  2 cases", "nats a token", "noise 0.75 to 1.00", "tests pass",
                 "single-line repair", "error reduction", "nearer than the damaged", "tokens a pass", "first text, ms",
                 "diffusion", "autoregressive", "difference", "95 % confidence"):  # fmt: skip
        assert said in text
    assert "sandbox: " in text


@pytest.mark.parametrize("width", [20, 60])
def test_narrow_terminals_do_no_harm(report, width):
    assert "held-out" in printed(report, width)


def test_skipped_tasks_say_why(unmarked, data):
    text = printed(evaluate(unmarked, Plan(tasks=("infill", "repair"), data=data)))
    assert text.count("skipped: the model was not trained to") == 2


def test_what_did_not_fit_and_what_was_not_measured(report):
    task = report["tasks"][2]
    own = {**task["variants"]["diffusion"], "too_long": 2, "passes": None}
    own["quality"] = dict.fromkeys(own["quality"])
    lost = {**task, "variants": {"diffusion": own}}
    del lost["difference"]
    text = printed({**report, "tasks": [lost]})
    assert "2 did not fit the model's context, counted as failed" in text
    assert "–" in text
    loss = report["tasks"][0]
    text = printed({**report, "tasks": [{**loss, "loss": {**loss["loss"], "too_long": 1}}]})
    assert "1 did not fit the model's context, left out" in text


@pytest.mark.parametrize(
    ("value", "show", "text"),
    [
        ((0.1234, 0.1, 0.15), percent, "12.3 % [10.0 … 15.0]"),
        ((-0.3, -0.5, 0.125), percent, "-30.0 % [-50.0 … 12.5]"),
        ((-0.0001, -1, 0), percent, "0.0 % [-100.0 … 0.0]"),
        ((99.994, 9, 1234.5), two, "99.99 [9.00 … 1234]"),
        (None, two, "–"),
    ],
)
def test_estimates(value, show, text):
    given = None if value is None else dict(zip(("mean", "low", "high"), value, strict=True))
    assert estimate(given, show) == text
