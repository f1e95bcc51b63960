"""The facade: text and ids, streams, stop strings across canvases, async, and bad requests."""

import asyncio
import threading
import time

import numpy as np
import pytest
import torch

from scumble import (
    LLM,
    CheckpointError,
    Committed,
    Draft,
    Finished,
    GenerationConfig,
    InvalidRequest,
    PromptTooLong,
    TokenizerError,
)
from scumble.diffusion import SeededNoise
from tiny import EOS, prompt, save_folder, tiny_model

FREE = {"ignore_eos": True, "max_denoising_steps": 3}
ASYNC_SECONDS = 60


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> LLM:
    """With a byte-level tokenizer; the model has as many ids as it."""
    folder = save_folder(tmp_path_factory.mktemp("llm"), tiny_model(vocab_size=300), tokenizer=True, t_max=0.7)
    return LLM.load(folder, dtype="float32", device="cpu")


def test_load_reads_everything_in_the_folder(llm):
    assert llm.model.dtype == torch.float32
    assert llm.defaults == {"t_max": 0.7}
    assert llm.tokenizer.bos_id == 2
    assert llm.encode_prompt("a")[0] == 2


def test_text_in_text_out(llm):
    config = GenerationConfig(max_new_tokens=20, seed=7, **FREE)
    generation = llm.generate("the canvas", config)
    assert generation.text == llm.tokenizer.decode(generation.token_ids)
    assert len(generation.token_ids) == 20
    assert generation.finish_reason == "length"
    assert generation.prompt_tokens == len(llm.encode_prompt("the canvas"))
    assert generation.passes == (3, 3, 3)
    assert 0 < generation.first_text_seconds <= generation.seconds
    assert generation.logprobs is None
    assert (
        generation == llm.generate("the canvas", config) or generation.text == llm.generate("the canvas", config).text
    )


def test_a_batch_gives_what_each_prompt_gives_alone(llm):
    config = GenerationConfig(max_new_tokens=10, **FREE)
    alone = [llm.generate(text, config).token_ids for text in ("the", "layer over layer")]
    assert [g.token_ids for g in llm.generate(["the", "layer over layer"], config)] == alone
    ids = [llm.encode_prompt(text) for text in ("the", "layer over layer")]
    assert [g.token_ids for g in llm.generate_ids(ids, config)] == alone
    assert [g.token_ids for g in llm.generate_ids(ids, [config, config])] == alone


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, np.array])
def test_ids_may_come_in_any_usual_container(llm, kind):
    config = GenerationConfig(max_new_tokens=6, **FREE)
    assert llm.generate_ids(kind(prompt(5)), config).token_ids == llm.generate_ids(prompt(5), config).token_ids


@pytest.mark.parametrize("decoder", ["diffusion", "autoregressive"])
def test_a_stream_tells_the_whole_story_in_order(llm, decoder):
    config = GenerationConfig(max_new_tokens=20, decoder=decoder, **FREE)
    events = list(llm.stream("the canvas", config))
    generation = events[-1].generation
    assert [type(event) for event in events].count(Finished) == 1
    committed = [event for event in events if isinstance(event, Committed)]
    assert sum((event.token_ids for event in committed), ()) == generation.token_ids
    assert "".join(event.text for event in committed) == generation.text
    assert generation.text == llm.generate("the canvas", config).text
    drafts = [event for event in events if isinstance(event, Draft)]
    if decoder == "autoregressive":
        assert drafts == []
        assert generation.passes == (20,)
    else:
        assert [(d.canvas, d.pass_index) for d in drafts] == [(c, p) for c in range(3) for p in range(3)]
        assert all(len(d.token_ids) == len(d.accepted) == 8 for d in drafts)


def test_draft_text_ends_before_the_end_id(llm):
    config = GenerationConfig(max_new_tokens=8, max_denoising_steps=1)
    draft = next(llm.stream("a", config, pinned={0: 10, 1: 11, 2: EOS}))
    assert draft.text == llm.tokenizer.decode([10, 11])


# --- stop strings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["diffusion", "autoregressive"])
@pytest.mark.parametrize("first", [1, 5, 6, 7, 8, 14])
def test_a_stop_string_ends_the_answer_wherever_canvases_meet(llm, decoder, first):
    """The stop string is a piece of the very answer that the same request gives without it: six characters that begin
    at token `first`, so that the string lies inside a canvas, ends one, or spans two (a canvas has 8 tokens)."""
    config = {"max_new_tokens": 24, "decoder": decoder, "seed": 3, **FREE}
    plain = llm.generate("the canvas", GenerationConfig(**config))
    begin = len(llm.tokenizer.decode(plain.token_ids[:first]).rstrip("�"))
    stop = plain.text[begin : begin + 6]
    expected = plain.text[: plain.text.index(stop)]
    stopped = llm.generate("the canvas", GenerationConfig(**config, stop=stop, logprobs=0))
    assert stopped.text == expected
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == plain.token_ids[: len(stopped.token_ids)]
    assert stop in llm.tokenizer.decode(stopped.token_ids)
    if "�" not in stop:  # the sign for half a character stands in a decoded text before the stream may show it
        assert stop not in llm.tokenizer.decode(stopped.token_ids[:-1])
    assert len(stopped.logprobs) == len(stopped.token_ids)
    events = list(llm.stream("the canvas", GenerationConfig(**config, stop=stop)))
    assert "".join(event.text for event in events if isinstance(event, Committed)) == expected


def test_a_stop_string_ends_one_row_of_a_batch_only(llm):
    config = GenerationConfig(max_new_tokens=20, **FREE)
    plain = llm.generate("the canvas", config)
    stopping = GenerationConfig(max_new_tokens=20, stop=plain.text[3:6], **FREE)
    ids = llm.encode_prompt("the canvas")
    one, two = llm.generate_ids([ids, ids], [stopping, config])
    assert one.finish_reason == "stop"
    assert two.token_ids == plain.token_ids


# --- closing and cancelling -------------------------------------------------------------------------------------------


def count_forwards(llm, monkeypatch) -> list[float]:
    times: list[float] = []
    original = type(llm.model).forward

    def forward(self, segments):
        times.append(time.perf_counter())
        time.sleep(0.02)
        return original(self, segments)

    monkeypatch.setattr(type(llm.model), "forward", forward)
    return times


def test_closing_a_stream_stops_the_work(llm, monkeypatch):
    times = count_forwards(llm, monkeypatch)
    stream = llm.stream("the canvas", GenerationConfig(max_new_tokens=2000, **FREE))
    for _ in range(3):
        next(stream)
    stream.close()
    done = len(times)
    time.sleep(0.1)
    assert len(times) == done < 10


def test_cancelling_an_async_stream_in_the_middle_of_a_pass_stops_the_work(llm, monkeypatch):
    times = count_forwards(llm, monkeypatch)

    async def watch() -> None:
        async for _ in llm.astream("the canvas", GenerationConfig(max_new_tokens=2000, **FREE)):
            pass

    async def cancel(work) -> None:
        task = asyncio.create_task(work())
        while len(times) < 4:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, ASYNC_SECONDS)
        done = len(times)
        await asyncio.sleep(0.1)
        assert len(times) == done < 20

    asyncio.run(cancel(watch))
    times.clear()
    asyncio.run(cancel(lambda: llm.agenerate("the canvas", GenerationConfig(max_new_tokens=2000, **FREE))))


def test_leaving_an_async_stream_early_stops_the_work(llm, monkeypatch):
    times = count_forwards(llm, monkeypatch)

    async def leave() -> None:
        events = llm.astream("the canvas", GenerationConfig(max_new_tokens=2000, **FREE))
        async for _ in events:
            break
        await events.aclose()
        done = len(times)
        await asyncio.sleep(0.1)
        assert len(times) == done < 10

    asyncio.run(leave())


def test_async_gives_what_sync_gives(llm):
    config = GenerationConfig(max_new_tokens=12, **FREE)

    async def both():
        events = [event async for event in llm.astream("the canvas", config)]
        generations = await asyncio.gather(*(llm.agenerate("the canvas", config) for _ in range(3)))
        return events, generations

    events, generations = asyncio.run(both())
    expected = llm.generate("the canvas", config).token_ids
    assert events[-1].generation.token_ids == expected
    assert [g.token_ids for g in generations] == [expected] * 3


def test_several_threads_may_share_an_llm(llm):
    configs = [GenerationConfig(max_new_tokens=12, seed=seed, **FREE) for seed in range(4)]
    expected = [llm.generate("the canvas", config).token_ids for config in configs]
    found = [None] * 4

    def work(i: int) -> None:
        found[i] = llm.generate("the canvas", configs[i]).token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


# --- given noise, traces ----------------------------------------------------------------------------------------------


def test_given_noise_takes_the_place_of_the_seed(llm):
    config = GenerationConfig(max_new_tokens=12, **FREE)
    wanted = llm.generate_ids(prompt(5), GenerationConfig(max_new_tokens=12, seed=99, **FREE))
    assert llm.generate_ids(prompt(5), config, noise=SeededNoise(99)).token_ids == wanted.token_ids
    rows = llm.generate_ids([prompt(5), prompt(5)], config, noise=[SeededNoise(99), SeededNoise(0)])
    assert rows[0].token_ids == wanted.token_ids
    assert rows[1].token_ids == llm.generate_ids(prompt(5), config).token_ids


def test_a_trace_sees_every_pass_of_every_row(llm):
    seen = []
    llm.generate_ids([prompt(5), prompt(3)], GenerationConfig(max_new_tokens=16, **FREE), trace=seen.append)
    assert sorted((e.row, e.canvas_index, e.pass_index) for e in seen) == [
        (row, canvas, number) for row in range(2) for canvas in range(2) for number in range(3)
    ]


# --- bad requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["", 5, None, b"x", {}, object(), [5], ["a", None], "\ud800"])
def test_prompts_that_are_none(llm, bad):
    with pytest.raises(InvalidRequest) as caught:
        llm.generate(bad, GenerationConfig(max_new_tokens=2, **FREE))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        [],
        5,
        None,
        "abc",
        b"",
        {},
        [[]],
        [[5], []],
        [5.5],
        [300],
        [-1],
        [[5], [300]],
        [[[5]]],
        [None],
        torch.ones(2, 2),
        torch.tensor(5),
    ],
)
def test_ids_that_are_none(llm, bad):
    with pytest.raises(InvalidRequest) as caught:
        llm.generate_ids(bad, GenerationConfig(max_new_tokens=2, **FREE))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [{"max_new_tokens": 5}, 5, "x", [], [5], [GenerationConfig(), GenerationConfig()]])
def test_configs_that_are_none(llm, bad):
    with pytest.raises(InvalidRequest, match="config must"):
        llm.generate_ids(prompt(3), bad)


@pytest.mark.parametrize("inputs", [{"draft": "abc"}, {"draft": [300]}, {"draft": 5}, {"pinned": 5}, {"pinned": [1]},
                                    {"pinned": {5: 300}}, {"pinned": {50: 3}}, {"pinned": {"0": 3}}])  # fmt: skip
def test_drafts_and_pins_that_are_none(llm, inputs):
    config = GenerationConfig(max_new_tokens=10, **FREE)
    for call in (lambda: llm.generate_ids(prompt(3), config, **inputs), lambda: llm.stream("a", config, **inputs)):
        with pytest.raises(InvalidRequest) as caught:
            call()
        assert str(caught.value).startswith(next(iter(inputs)))


def test_a_batch_needs_one_entry_a_row(llm):
    with pytest.raises(InvalidRequest, match=r"pinned must be a list with one entry a row \(2\)"):
        llm.generate_ids([prompt(3), prompt(4)], pinned={0: 5})
    with pytest.raises(InvalidRequest, match=r"noise must be a list with one entry a row \(2\)"):
        llm.generate_ids([prompt(3), prompt(4)], noise=SeededNoise(1))


def test_a_stream_checks_its_request_before_the_first_event(llm):
    with pytest.raises(PromptTooLong, match="max_new_tokens must be ≤ 409"):
        llm.stream("a", GenerationConfig(max_new_tokens=10**9))


def test_a_billion_tokens_name_the_largest_number_that_is_allowed(llm):
    with pytest.raises(PromptTooLong) as caught:
        llm.generate_ids(prompt(96), GenerationConfig(max_new_tokens=10**9))
    assert str(caught.value) == (
        "max_new_tokens must be ≤ 4000 for this prompt (96 tokens of a context of 4096), found 1000000000"
    )


@pytest.mark.parametrize("dtype", ["float64", "int2", torch.float16, None, 5, [], "x"])
def test_dtypes_that_are_none(llm, dtype):
    with pytest.raises(InvalidRequest, match="dtype must be one of auto, float32, bfloat16"):
        LLM.load(llm.folder, dtype=dtype)


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", 99, None, [], ""])
def test_devices_that_are_none(llm, device):
    with pytest.raises(InvalidRequest, match="device must be"):
        LLM.load(llm.folder, device=device)


def test_no_such_folder():
    with pytest.raises(CheckpointError, match="no such folder"):
        LLM.load("nowhere/at/all")


def test_an_llm_without_tokenizer_works_on_ids_and_says_so_for_text():
    llm = LLM(tiny_model())
    generation = llm.generate_ids(prompt(3), GenerationConfig(max_new_tokens=5, **FREE))
    assert generation.text == ""
    assert len(generation.token_ids) == 5
    with pytest.raises(TokenizerError):
        llm.generate("text")


# --- arguments that do not exist --------------------------------------------------------------------------------------


def test_unknown_keywords_are_named_as_the_caller_wrote_them(llm):
    for call in (
        lambda **more: llm.generate("x", **more),
        lambda **more: llm.generate(["x", "y"], **more),
        lambda **more: list(llm.stream("x", **more)),
        lambda **more: list(llm.stream_ids([[5]], **more)),
        lambda **more: asyncio.run(llm.agenerate("x", **more)),
    ):
        with pytest.raises(
            InvalidRequest, match=r"^unknown input 'foo'; valid: draft, pinned, noise(, prediction)?; settings go into"
        ):
            call(foo=1)
        with pytest.raises(
            InvalidRequest, match=r"^max_new_tokens is a setting; give GenerationConfig\(max_new_tokens=4"
        ):
            call(max_new_tokens=4)


def test_a_setting_is_no_variable_of_a_chat_template(llm):
    with pytest.raises(InvalidRequest, match=r"^max_new_tokens is a setting"):
        llm.chat([{"role": "user", "content": "x"}], max_new_tokens=4)


@pytest.mark.parametrize("prompt", [b"x", bytearray(b"x"), 5, None, 1.5])
def test_a_prompt_that_is_no_text_is_shown_as_it_is(llm, prompt):
    with pytest.raises(InvalidRequest, match="a prompt must be a text, found ") as caught:
        llm.generate(prompt)
    assert repr(prompt) in str(caught.value)
