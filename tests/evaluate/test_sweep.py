"""Sweeps: which points are on the front, and what is drawn of them."""

import io
import itertools
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from scumble import InvalidRequest
from scumble.errors import ScumbleError
from scumble.evaluate.plan import Plan
from scumble.evaluate.plot import check_plot, draw
from scumble.evaluate.sweep import front, print_sweep, sweep
from scumble.evaluate.variants import GRID, grid_variants, read_grid

TINY_GRID = {"entropy_bound": (0.1, 2.0), "max_denoising_steps": (1, 2)}


def point(place: tuple[float, float] | None) -> dict:
    passes, quality = place if place is not None else (None, None)
    return {
        "evaluations": None if passes is None else {"mean": passes},
        "quality": {"score": None if quality is None else {"mean": quality}},
    }


def better(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] >= other[1]


PLACES = st.lists(st.none() | st.tuples(st.integers(1, 6), st.integers(-2, 3)), max_size=12)


@given(PLACES)
def test_no_point_on_the_front_is_beaten_and_all_others_are(places):
    names = front({str(number): point(place) for number, place in enumerate(places)}, "score")
    on = [places[int(name)] for name in names]
    off = [place for number, place in enumerate(places) if place is not None and str(number) not in names]
    assert not any(better(one, other) for one, other in itertools.product([*on, *off], on))
    assert all(any(better(one, other) for one in on) for other in off)
    assert bool(names) == any(place is not None for place in places)
    assert on == sorted(on), "cheapest first"


def test_a_grid_has_every_point_once_and_fixed_settings_stay():
    assert len({variant.name for variant in grid_variants(GRID, {})}) == 12
    fixed = grid_variants(GRID, {"entropy_bound": 0.3})
    assert [variant.settings["temperature"] for variant in fixed] == list(GRID["temperature"])
    assert all(variant.settings["entropy_bound"] == 0.3 for variant in fixed)
    assert {variant.settings["decoder"] for variant in fixed} == {"diffusion"}


def test_a_grid_of_ones_own():
    grid = read_grid(["entropy_bound=0.1,2", "canvas_length=auto,8", "stability=argmax_is_canvas"])
    assert grid == {"entropy_bound": [0.1, 2], "canvas_length": ["auto", 8], "stability": ["argmax_is_canvas"]}
    assert [variant.name for variant in grid_variants(grid, {})][:2] == [
        "bound=0.1 canvas=auto stability=argmax_is_canvas", "bound=0.1 canvas=8 stability=argmax_is_canvas",
    ]  # fmt: skip
    for fixed in ("seed=1,2", "max_new_tokens=4", "decoder=autoregressive", "top_k=3", "stop=a", "nothing=1"):
        with pytest.raises(InvalidRequest, match=r"^--grid tries one of temperature, .*, stability, found '\w+'$"):
            read_grid([fixed])
    for bad in ("entropy_bound", "entropy_bound=", "commit=none", "entropy_bound=-1"):
        with pytest.raises(InvalidRequest):
            read_grid([bad])
    with pytest.raises(InvalidRequest, match="once a setting"):
        read_grid(["commit=argmax", "commit=sample"])


def test_a_value_that_is_there_twice_is_one_point():
    grid = read_grid(["entropy_bound=0.5,1,0.50,1.0", "commit=sample,sample"])
    names = [variant.name for variant in grid_variants(grid, {})]
    assert names == ["bound=0.5 commit=sample", "bound=1 commit=sample"]


@pytest.fixture(scope="module")
def report(llm, data):
    plan = Plan(tasks=("repair",), data=data, limit=2)
    return json.loads(json.dumps(sweep(llm, plan, grid=TINY_GRID), allow_nan=False))


def test_a_sweep_measures_every_point_and_the_other_decoder(report):
    names = ["bound=0.1 steps=1", "bound=0.1 steps=2", "bound=2.0 steps=1", "bound=2.0 steps=2"]
    assert set(report["task"]["variants"]) == {*names, "autoregressive"}
    assert report["task"]["name"] == "repair"
    assert report["front"]
    assert set(report["front"]) <= set(names)
    assert "difference" not in report["task"]


def test_a_sweep_is_printed_with_its_front_marked(report):
    out = io.StringIO()
    print_sweep(report, Console(file=out, width=160))
    rows = {row[2:].split("  ")[0]: row[0] for row in out.getvalue().splitlines()}
    assert {name for name, mark in rows.items() if name in report["task"]["variants"] and mark == "*"} == set(
        report["front"]
    )
    assert set(rows) >= set(report["task"]["variants"])


def test_the_figure_that_counts_can_be_chosen(llm, data):
    plan = Plan(tasks=("repair",), data=data, limit=1)
    grid = {"max_denoising_steps": (1,)}
    assert sweep(llm, plan, grid=grid, metric="better")["metric"] == "better"
    with pytest.raises(InvalidRequest, match="exact, error_reduction, better"):
        sweep(llm, plan, grid=grid, metric="bettr")


@pytest.mark.parametrize("tasks", [("loss",), ("infill", "repair")])
def test_a_sweep_is_of_one_task_that_generates(llm, data, tasks):
    with pytest.raises(InvalidRequest, match="one task that generates"):
        sweep(llm, Plan(tasks=tasks, data=data))


def test_a_task_that_cannot_be_done_is_an_error_here(unmarked, data):
    with pytest.raises(InvalidRequest, match="infill: the model was not trained"):
        sweep(unmarked, Plan(data=data))


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_is_drawn(report, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"sweep.{suffix}"
    check_plot(path)
    draw(report, path)
    assert path.stat().st_size > 1000


def test_points_that_were_not_measured_are_not_drawn(report, tmp_path):
    pytest.importorskip("matplotlib")
    empty = {"quality": {"exact": None, "error_reduction": None, "better": None}, "evaluations": None}
    nothing = {**report, "front": [], "task": {**report["task"], "variants": {"a": empty, "autoregressive": empty}}}
    draw(nothing, tmp_path / "nothing.svg")
    assert (tmp_path / "nothing.svg").exists()


def test_pictures_that_cannot_come(tmp_path, monkeypatch):
    with pytest.raises(InvalidRequest, match=r"--plot writes .*found sweep\.gif"):
        check_plot(tmp_path / "sweep.gif")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ScumbleError, match="pip install matplotlib"):
        check_plot(tmp_path / "sweep.png")
