"""One table of settings: checks, command line, checkpoints and reference page all follow from it."""

import json

import pytest
import typer

from scumble import GenerationConfig, InvalidRequest
from scumble.checkpoint.load import read_generation_config
from scumble.cli.main import load_command
from scumble.cli.options import generation_config
from scumble.settings import CANVAS_SETTINGS, RELEASE_DEFAULTS, SETTINGS, Real, Whole


@pytest.mark.parametrize("row", SETTINGS.values(), ids=lambda row: row.name)
def test_every_row_is_complete_and_its_default_is_one_of_its_values(row):
    assert row.help.endswith(".")
    assert row.default is None or row.values.holds(row.default)
    assert row.option[0].startswith("--")
    if row.default is not None:
        assert RELEASE_DEFAULTS[row.name] == row.default


def test_generate_has_an_option_for_every_row_and_its_help():
    options = {name: one for one in load_command("generate").params for name in one.opts}
    for row in SETTINGS.values():
        assert options[row.option[0]].help == row.help


def test_eval_has_the_options_of_canvases():
    names = {name for one in load_command("eval").params for name in one.opts}
    assert {SETTINGS[name].option[0] for name in CANVAS_SETTINGS} <= names


def test_a_command_gets_the_settings_that_were_given_and_no_others():
    from scumble.cli.options import setting_options

    seen = {}

    @setting_options()
    def command(text: str = "", *, settings: dict):
        seen.update(settings, text=text)

    app = typer.Typer()
    app.command()(command)
    given = [
        "--seed",
        "3",
        "--steps",
        "5",
        "--canvas-length",
        "auto",
        "--stop",
        "a",
        "--stop",
        "b",
        "--ignore-eos",
        "--temperature",
        "0.5",
    ]
    app(given, standalone_mode=False)
    assert seen == {
        "text": "", "seed": 3, "max_denoising_steps": 5, "canvas_length": "auto", "stop": ("a", "b"),
        "ignore_eos": True, "temperature": 0.5,
    }  # fmt: skip


def test_what_the_other_decoder_alone_reads_is_named():
    config = GenerationConfig(decoder="autoregressive", entropy_bound=1.0, top_k=3)
    assert config.without_effect() == ["entropy_bound"]
    assert GenerationConfig(decoder="diffusion", entropy_bound=1.0, top_k=3).without_effect() == ["top_k"]
    assert GenerationConfig(entropy_bound=1.0, top_k=3).without_effect() == []
    with pytest.raises(InvalidRequest, match="--entropy-bound, --steps: for canvases"):
        generation_config({"decoder": "autoregressive", "entropy_bound": 1.0, "max_denoising_steps": 4})


@pytest.mark.parametrize("row", [row for row in SETTINGS.values() if row.stored], ids=lambda row: row.name)
def test_a_checkpoint_may_choose_what_the_table_says_it_may(row, tmp_path):
    value = {Whole: 7, Real: 0.6}.get(type(row.values)) or row.values.names[-1]  # type: ignore[union-attr]
    holder: dict = {}
    inner = holder
    for group in row.stored[:-1]:
        inner = inner.setdefault(group, {})
    inner[row.stored[-1]] = value
    (tmp_path / "generation_config.json").write_text(json.dumps(holder))
    if row.name != "canvas_length":  # checked against the model as well, which this folder lacks
        assert read_generation_config(tmp_path) == {row.name: value}


def test_a_stop_string_is_valid_unicode():
    for stop in ("\ud800", ["ok", "\udcff"], "", [""], [b"x"]):
        with pytest.raises(InvalidRequest, match=r"stop must be a string or a list of strings, none of them empty"):
            GenerationConfig(stop=stop)
    assert GenerationConfig(stop="\U0001f642").stop == ("\U0001f642",)


@pytest.mark.parametrize("top_k", [0, -1])
def test_no_limit_on_the_best_tokens_is_the_same_as_none_given(top_k):
    assert GenerationConfig(top_k=top_k) == GenerationConfig()
    assert GenerationConfig(top_k=top_k, decoder="diffusion").without_effect() == []


def test_what_is_no_number_is_refused_where_0_means_no_limit():
    with pytest.raises(InvalidRequest, match=r"top_k must be a whole number in 1 … 2147483647 \(0 or -1: no limit\)"):
        GenerationConfig(top_k=False)
