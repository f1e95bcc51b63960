"""GenerationConfig refuses what cannot be meant, and fills what is left open from the right place."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble import GenerationConfig, InvalidRequest, PromptTooLong
from scumble.decode import make_request
from tiny import tiny_config

NUMBERS = ("max_new_tokens", "seed", "temperature", "entropy_bound", "t_min", "t_max", "max_denoising_steps",
           "stability_threshold", "confidence_threshold", "canvas_length", "top_k", "top_p", "best_of",
           "logprobs")  # fmt: skip
WHOLE = ("max_new_tokens", "seed", "max_denoising_steps", "stability_threshold", "canvas_length", "top_k", "best_of",
         "logprobs")  # fmt: skip
ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text(), max_size=2))
NAMES = [field.name for field in dataclasses.fields(GenerationConfig)]


def refused(**settings) -> str:
    with pytest.raises(InvalidRequest) as caught:
        GenerationConfig(**settings)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def test_an_unknown_name_is_refused_with_a_suggestion_and_the_valid_names():
    message = refused(max_tokens=5)
    assert "unknown setting 'max_tokens'; did you mean 'max_new_tokens'?" in message
    assert all(name in message for name in NAMES)
    assert "did you mean" not in refused(zzz=1)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        -7,
        -0.5,
        True,
        False,
        "5",
        [5],
        {},
        10**400,
        pytest.param(10**5000, id="5001 digits"),
        1j,
        b"5",
    ],
)
def test_every_number_refuses_nonsense_and_names_itself_its_range_and_the_value(name, value):
    message = refused(**{name: value})
    assert message.startswith(f"{name} must be a")
    assert "found " in message


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_refuse_fractions(name):
    assert "whole number" in refused(**{name: 1.0})


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("max_new_tokens", (1, 2**31 - 1), (0, 2**31)),
        ("seed", (0, 2**64 - 1), (-1, 2**64)),
        ("temperature", (0, 0.0, 1e-4, 1000), (1e-5, 1e-300, 1001)),
        ("entropy_bound", (1e-9, 1e9), (0, 1e10)),
        ("t_min", (1e-4, 1000), (0, 1e-300)),
        ("t_max", (1e-4, 1000), (0, 2000)),
        ("max_denoising_steps", (1, 10_000), (0, 10_001)),
        ("stability_threshold", (0, 10_000), (-1, 10_001)),
        ("confidence_threshold", (0, 5.0), (-0.001, 1e10)),
        ("canvas_length", (1, 2**20), (0, 2**20 + 1)),
        ("top_k", (1, 2**31 - 1), (-2, 2**31)),
        ("top_p", (1e-9, 1), (0, 1.0001)),
        ("logprobs", (0, 20), (-1, 21)),
    ],
)
def test_ranges_hold_at_their_ends(name, inside, outside):
    for value in inside:
        assert getattr(GenerationConfig(**{name: value}), name) == value
    for value in outside:
        refused(**{name: value})


def test_choices_list_what_is_valid():
    assert "diffusion, autoregressive" in refused(decoder="ar")
    assert "argmax, sample" in refused(commit=3)
    assert "argmax_history, argmax_is_canvas" in refused(stability=["argmax_history"])
    assert "True or False" in refused(ignore_eos=1)


def test_stop_is_a_string_or_a_list_of_strings():
    assert GenerationConfig(stop="a").stop == ("a",)
    assert GenerationConfig(stop=["a", "b"]).stop == ("a", "b")
    assert GenerationConfig(stop=[]).stop == ()
    for wrong in (5, "", [""], ["a", 5], [None], b"x", {"a": 1}, object()):
        assert refused(stop=wrong).startswith("stop must")


def test_t_min_may_not_exceed_t_max():
    assert "t_min must be ≤ t_max (0.5), found 0.6" in refused(t_min=0.6, t_max=0.5)


@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING))
def test_whatever_is_given_either_makes_a_config_or_an_invalid_request(given_settings):
    try:
        config = GenerationConfig(**given_settings)
    except InvalidRequest:
        return
    assert config == dataclasses.replace(config)
    assert hash(config) == hash(dataclasses.replace(config))


# --- what is left open ------------------------------------------------------------------------------------------------


def settings_of(config: GenerationConfig, checkpoint: dict, **changes):
    return make_request([5, 6], config, checkpoint, tiny_config(**changes))


def test_the_caller_goes_before_the_checkpoint_and_the_checkpoint_before_the_release():
    checkpoint = {"t_min": 0.3, "t_max": 0.9, "max_denoising_steps": 7, "entropy_bound": 0.5, "max_new_tokens": 30}
    settings = settings_of(GenerationConfig(max_denoising_steps=3), checkpoint)
    assert settings.schedule.passes == 3  # the caller's
    assert (settings.schedule.t_min, settings.schedule.t_max) == (0.3, 0.9)  # the checkpoint's
    assert settings.sampler.bound == 0.5
    assert settings.max_new_tokens == 30
    assert settings.stopping.confidence == 0.005  # the release's
    assert [settings.canvas_length(i) for i in range(3)] == [8, 8, 8]  # config.json's


def test_with_nothing_given_the_release_s_values_serve():
    settings = settings_of(GenerationConfig(), {})
    schedule, stopping = settings.schedule, settings.stopping
    assert (schedule.t_min, schedule.t_max, schedule.passes, settings.sampler.bound) == (0.4, 0.8, 48, 0.1)
    assert (stopping.stability, stopping.confidence, stopping.rule) == (1, 0.005, "argmax_history")
    config = settings.config
    assert (config.max_new_tokens, config.seed, config.commit, config.decoder) == (256, 0, "argmax", "diffusion")
    assert settings.eos_ids == {1}


def test_a_zero_or_false_of_the_caller_counts_as_given():
    settings = settings_of(
        GenerationConfig(confidence_threshold=0, stability_threshold=0), {"confidence_threshold": 1.0}
    )
    assert settings.stopping.confidence == 0
    assert settings.stopping.stability == 0


def test_temperature_scales_the_schedule():
    settings = settings_of(GenerationConfig(temperature=0.5), {})
    assert (settings.schedule.t_min, settings.schedule.t_max) == pytest.approx((0.2, 0.4))
    assert settings_of(GenerationConfig(temperature=0), {}).schedule.t_max == 0.8


def test_ignore_eos_and_the_context_s_end():
    assert settings_of(GenerationConfig(ignore_eos=True), {}).eos_ids == frozenset()
    assert settings_of(GenerationConfig(), {}, max_position_embeddings=12).max_new_tokens == 10


def test_what_does_not_fit_the_model_is_refused_with_the_allowed_range():
    model = tiny_config(max_position_embeddings=100)
    with pytest.raises(PromptTooLong, match=r"max_new_tokens must be ≤ 98 .*found 1000000000"):
        make_request([5, 6], GenerationConfig(max_new_tokens=10**9), {}, model)
    with pytest.raises(PromptTooLong, match=r"the prompt has 100 tokens; the model's context holds 100"):
        make_request([5] * 100, GenerationConfig(), {}, model)
    make_request([5] * 99, GenerationConfig(max_new_tokens=1), {}, model)
    with pytest.raises(InvalidRequest, match=r"canvas_length must lie in 1 … 8 for this model, found 9"):
        make_request([5], GenerationConfig(canvas_length=9), {}, model)
    with pytest.raises(InvalidRequest, match="top_k and top_p apply to decoder='autoregressive'"):
        make_request([5], GenerationConfig(top_k=3), {}, model)
    with pytest.raises(InvalidRequest, match="draft and pinned need decoder='diffusion'"):
        make_request([5], GenerationConfig(decoder="autoregressive"), {}, model, pinned={0: 5})


@pytest.mark.parametrize(
    "bad",
    [[97], [-1], [3, 10**30], [1.5], [[1]], ["a"], "abc", 5, {"a": 1}, [None], [True, False], [1 + 2j], object()],
)
@pytest.mark.parametrize("what", ["prompt", "draft"])
def test_ids_have_to_be_ids(what, bad):
    inputs = {"prompt": [5], what: bad}
    with pytest.raises(InvalidRequest, match=f"^{what}"):
        make_request(inputs.pop("prompt"), GenerationConfig(), {}, tiny_config(), **inputs)


@pytest.mark.parametrize(
    "bad",
    ["abc", 5, [3], [(1, 2)], {-1: 5}, {10: 5}, {10**30: 5}, {"0": 5}, {0: "5"}, {0: 97}, {0: -1}, {0: 2.5}, {True: 5},
     {0: True}, {0: None}, {0: [5]}, {1.0: 5}],
)  # fmt: skip
def test_pinned_maps_answer_positions_to_ids(bad):
    with pytest.raises(InvalidRequest, match=r"^pinned") as caught:
        make_request([5], GenerationConfig(max_new_tokens=10), {}, tiny_config(), pinned=bad)
    assert "found" in str(caught.value)


def test_an_empty_prompt_is_refused():
    with pytest.raises(InvalidRequest, match="the prompt is empty"):
        make_request([], GenerationConfig(), {}, tiny_config())
