"""The engine's promises: reproducible in any batch, exact cuts, pins and drafts, end ids, logprobs, cancelling."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble import GenerationConfig, ScumbleError
from scumble.engine import generate, make_request, run
from scumble.model import Segment
from scumble.ops import softcap
from tiny import EOS, answer, prompt, tiny_model

MODEL = tiny_model()
L = MODEL.config.canvas_length
FREE = {"ignore_eos": True, "max_denoising_steps": 4}  # quick, and never cut by an end id


def head(hidden: torch.Tensor) -> torch.Tensor:
    """Logits [n, V] of hidden states [n, D], all at once."""
    return softcap((hidden @ MODEL.embed_tokens.weight.T).float(), MODEL.config.final_logit_softcapping)


# --- batches ----------------------------------------------------------------------------------------------------------

ROWS = [
    (prompt(3, 1), GenerationConfig(max_new_tokens=20, seed=1, max_denoising_steps=4)),
    (prompt(11, 2), GenerationConfig(max_new_tokens=7, seed=2, temperature=0, **FREE)),
    (prompt(6, 3), GenerationConfig(max_new_tokens=12, seed=3, decoder="autoregressive", ignore_eos=True)),
    (prompt(5, 4), GenerationConfig(max_new_tokens=9, seed=4, canvas_length=3, logprobs=2, **FREE)),
    (prompt(7, 5), GenerationConfig(max_new_tokens=17, seed=2**64 - 1, entropy_bound=3.0, confidence_threshold=1.0)),
    (prompt(9, 6), GenerationConfig(max_new_tokens=5, seed=6, decoder="autoregressive", temperature=0, top_k=3)),
    (prompt(2, 7), GenerationConfig(max_new_tokens=30, seed=7, canvas_length="auto", **FREE)),
    (prompt(4, 8), GenerationConfig(max_new_tokens=12, seed=8, best_of=3, entropy_bound=3.0, **FREE)),
    (prompt(6, 9), GenerationConfig(max_new_tokens=12, seed=9, best_of=2, revisions=3, entropy_bound=3.0, **FREE)),
]


@pytest.fixture(scope="module")
def alone(one_thread_for_the_module):
    return [answer(MODEL, [ids], config)[0] for ids, config in ROWS]


@given(st.lists(st.integers(0, len(ROWS) - 1), min_size=1, max_size=6))
@settings(deadline=None, max_examples=10)
def test_a_row_s_tokens_do_not_depend_on_its_neighbours(alone, chosen):
    """Any batch, any order, neighbours of other lengths, settings, decoders, and even copies of itself."""
    batch = answer(MODEL, [ROWS[i][0] for i in chosen], [ROWS[i][1] for i in chosen])
    for number, row in zip(chosen, batch, strict=True):
        assert row["ids"] == alone[number]["ids"]
        assert row["answer"] == alone[number]["answer"]
        assert [c.logprobs for c in row["commits"]] == [c.logprobs for c in alone[number]["commits"]]
        for mine, theirs in zip(row["passes"], alone[number]["passes"], strict=True):
            assert torch.equal(mine.canvas_out, theirs.canvas_out)
            assert torch.equal(mine.entropy, theirs.entropy)


def test_another_seed_gives_another_answer():
    answers = [
        answer(MODEL, [prompt(5)], GenerationConfig(max_new_tokens=16, seed=s, **FREE))[0]["ids"] for s in (1, 2)
    ]
    assert answers[0] != answers[1]


def test_one_forward_over_all_segments_gives_the_same_hidden_states():
    """batch_invariant=False: products of other sizes round differently, by no more than float32 does."""
    caches = [MODEL.new_cache() for _ in range(3)]
    for cache, length in zip(caches, (4, 9, 6), strict=True):
        MODEL.encode(torch.tensor(prompt(length, length)), cache)
    segments = [
        Segment(torch.tensor(prompt(8, 1)), caches[0], "denoise"),
        Segment(torch.tensor(prompt(8, 2)), caches[1], "denoise", torch.randn(8, 32)),
        Segment(torch.tensor(prompt(5, 3)), caches[2], "encode"),
    ]
    with torch.no_grad():
        separate = [MODEL([segment]) for segment in segments[:2]]
        together = MODEL(segments).split([8, 8, 5])
    for one, other in zip(separate, together, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_shared_forwards_answer_every_row(alone):
    rows = answer(MODEL, [ids for ids, _ in ROWS], [config for _, config in ROWS], batch_invariant=False)
    for row, separate in zip(rows, alone, strict=True):
        assert row["answer"].finish_reason in ("stop", "length")
        if separate["answer"].finish_reason == "length" and row["answer"].finish_reason == "length":
            assert len(row["ids"]) == len(separate["ids"])


# --- lengths and ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["diffusion", "autoregressive"])
@pytest.mark.parametrize("tokens", range(1, 2 * L + 2))
def test_max_new_tokens_is_exact(decoder, tokens):
    config = GenerationConfig(max_new_tokens=tokens, decoder=decoder, ignore_eos=True, max_denoising_steps=2)
    row = answer(MODEL, [prompt(4)], config)[0]
    assert len(row["ids"]) == tokens
    assert row["answer"].finish_reason == "length"
    assert len(row["answer"].passes) == (-(-tokens // L) if decoder == "diffusion" else 1)


@pytest.mark.parametrize("length", range(1, L + 1))
def test_a_shorter_canvas_than_the_checkpoint_s(length):
    row = answer(MODEL, [prompt(4)], GenerationConfig(max_new_tokens=10, canvas_length=length, **FREE))[0]
    assert len(row["ids"]) == 10
    assert {len(event.canvas_in) for event in row["passes"]} == {length}
    assert len(row["answer"].passes) == -(-10 // length)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 48, 49, 200])
def test_automatic_canvases_begin_short_and_double(tokens):
    """16, 32, 64, 64 … for a checkpoint of 64; the answer is as long as with any other length."""
    model = tiny_model(canvas_length=64)
    config = GenerationConfig(max_new_tokens=tokens, canvas_length="auto", **(FREE | {"max_denoising_steps": 2}))
    row = answer(model, [prompt(4)], config)[0]
    lengths = [len(event.canvas_in) for event in row["passes"] if event.pass_index == 0]
    assert lengths == [16, 32, 64, 64, 64][: len(lengths)]
    assert sum(lengths[:-1]) < tokens <= sum(lengths)
    assert len(row["ids"]) == tokens


def test_short_canvases_may_take_fewer_passes():
    model = tiny_model(canvas_length=64)
    config = GenerationConfig(
        max_new_tokens=112, canvas_length="auto", positions_per_pass=5, **(FREE | {"max_denoising_steps": 12})
    )
    row = answer(model, [prompt(4)], config)[0]
    assert row["answer"].passes == (4, 7, 12)
    temperatures = [event.temperature for event in row["passes"] if event.canvas_index == 0]
    assert temperatures == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_automatic_canvases_of_a_short_checkpoint_are_its_own():
    row = answer(MODEL, [prompt(4)], GenerationConfig(max_new_tokens=20, canvas_length="auto", **FREE))[0]
    assert {len(event.canvas_in) for event in row["passes"]} == {L}


def test_pins_and_drafts_keep_their_place_on_automatic_canvases():
    model = tiny_model(canvas_length=64)
    config = GenerationConfig(max_new_tokens=60, canvas_length="auto", **(FREE | {"max_denoising_steps": 1}))
    pins = {0: 5, 15: 6, 16: 7, 47: 8, 48: 9, 59: 10}
    draft = prompt(60, 3)
    row = answer(model, [prompt(4)], config, pinned=pins, draft=draft)[0]
    assert {position: row["ids"][position] for position in pins} == pins
    first_looks = torch.cat([event.canvas_in for event in row["passes"] if event.pass_index == 0]).tolist()
    assert first_looks[:60] == [pins.get(position, token) for position, token in enumerate(draft)]


@pytest.mark.parametrize("position", [0, 3, L - 1, L, L + 2])
def test_an_end_id_ends_the_answer_and_nothing_stands_behind_it(position):
    """The end id is pinned, so that it is committed at a known place."""
    quiet = GenerationConfig(max_new_tokens=2 * L, max_denoising_steps=2)
    row = answer(NO_EOS, [prompt(4)], quiet, pinned={position: EOS})[0]
    assert row["ids"][-1] == EOS
    assert EOS not in row["ids"][:-1]
    assert len(row["ids"]) <= position + 1
    assert row["answer"].finish_reason == "stop"
    further = answer(
        NO_EOS, [prompt(4)], GenerationConfig(max_new_tokens=2 * L, **FREE), pinned={position: EOS}
    )[0]  # fmt: skip
    assert len(further["ids"]) == 2 * L
    assert further["answer"].finish_reason == "length"


def _without_eos():
    """A model to which the end id is the least likely of all."""
    model = tiny_model()
    model.embed_tokens.weight[EOS] = 0
    return model


NO_EOS = _without_eos()


# --- drafts and pins --------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.integers(0, 19), st.integers(0, 96), max_size=12), st.integers(1, L))
@settings(deadline=None, max_examples=15)
def test_pinned_ids_stand_in_the_answer_and_on_every_canvas(pinned, length):
    config = GenerationConfig(max_new_tokens=20, canvas_length=length, **FREE)
    row = answer(MODEL, [prompt(5)], config, pinned=pinned)[0]
    for position, token in pinned.items():
        assert row["ids"][position] == token
    for event in row["passes"]:
        for position, token in pinned.items():
            if position // length == event.canvas_index:
                here = position % length
                assert int(event.canvas_in[here]) == int(event.canvas_out[here]) == int(event.argmax[here]) == token
                assert float(event.entropy[here]) == 0
                assert bool(event.accepted[here])


def test_a_draft_is_where_the_canvases_start_from():
    draft = prompt(L + 3, 9)
    row = answer(MODEL, [prompt(5)], GenerationConfig(max_new_tokens=2 * L, **FREE), draft=draft)[0]
    first = [event.canvas_in.tolist() for event in row["passes"] if event.pass_index == 0]
    noise = make_request(prompt(5), GenerationConfig(), {}, MODEL.config).noises[0]
    assert first[0] == draft[:L]
    assert first[1] == draft[L:] + noise.initial(1, L, 97)[3:].tolist()


def test_a_wholly_pinned_canvas_takes_one_pass():
    row = answer(
        MODEL, [prompt(5)], GenerationConfig(max_new_tokens=L, ignore_eos=True), pinned=dict.fromkeys(range(L), 9)
    )
    assert row[0]["answer"].passes == (1,)


# --- logprobs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["diffusion", "autoregressive"])
def test_logprobs_are_those_of_the_causal_model_over_the_whole_text(decoder):
    start = prompt(6)
    config = GenerationConfig(max_new_tokens=2 * L + 3, logprobs=4, decoder=decoder, **FREE)
    row = answer(MODEL, [start], config)[0]
    found = [entry for commit in row["commits"] for entry in commit.logprobs]
    hidden = MODEL.encode(torch.tensor(start + row["ids"]), MODEL.new_cache())
    expected = torch.log_softmax(head(hidden)[len(start) - 1 : -1], -1)
    assert [entry.token_id for entry in found] == row["ids"]
    own = expected.gather(1, torch.tensor(row["ids"])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor([entry.logprob for entry in found]), own, rtol=1e-4, atol=1e-4)
    best = torch.tensor([[value for _, value in entry.top] for entry in found])
    torch.testing.assert_close(best, expected.topk(4).values, rtol=1e-4, atol=1e-4)


def test_a_token_among_the_alternatives_has_the_same_logprob_there():
    """In bfloat16 too: one row of the head is rounded like the head's whole product, to one unit in the last place."""
    model = tiny_model(dtype=torch.bfloat16)
    config = GenerationConfig(max_new_tokens=24, decoder="autoregressive", temperature=0, logprobs=1, ignore_eos=True)
    for commit in answer(model, [prompt(5)], config)[0]["commits"]:
        entry = commit.logprobs[0]
        assert entry.top[0][0] == entry.token_id
        assert entry.logprob == pytest.approx(entry.top[0][1], abs=0.07)  # logits up to 16: their unit is 1/16


def test_logprobs_cost_no_pass_and_change_no_token():
    configs = [GenerationConfig(max_new_tokens=20, logprobs=k, **FREE) for k in (None, 0, 3)]
    rows = [answer(MODEL, [prompt(5)], config)[0] for config in configs]
    assert rows[0]["ids"] == rows[1]["ids"] == rows[2]["ids"]
    assert rows[0]["answer"] == rows[1]["answer"] == rows[2]["answer"]
    assert rows[0]["commits"][0].logprobs is None
    assert rows[1]["commits"][0].logprobs[0].top == ()


# --- weights that are not numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [{}, {"temperature": 0}, {"decoder": "autoregressive"}, {"logprobs": 1}])
@pytest.mark.parametrize("name", ["embed_tokens.weight", "norm.weight", "layers.1.mlp.down_proj.weight"])
def test_an_output_that_is_not_a_number_is_an_error_before_anything_is_committed(name, config, dtype):
    model = tiny_model(dtype=dtype)
    model.get_parameter(name).view(-1)[3] = float("nan")
    request = make_request(prompt(4), GenerationConfig(max_new_tokens=8, **config), {}, model.config)
    with pytest.raises(ScumbleError, match="must be finite numbers, found nan; its weights may be damaged"):
        next(run(model, [generate(model, request)]))


def test_positions_without_any_doubt_are_no_error():
    """One id's embedding, and its logit with it, far above all others: every entropy is 0."""
    model = tiny_model(final_logit_softcapping=1e4)
    model.embed_tokens.weight *= 1e3
    row = answer(model, [prompt(4)], GenerationConfig(max_new_tokens=8, temperature=0, **FREE))[0]
    assert any(float(done.entropy.min()) == 0 for done in row["passes"])
    assert len(row["ids"]) == 8


# --- cancelling -------------------------------------------------------------------------------------------------------


def test_closing_the_run_ends_every_program():
    programs = [generate(MODEL, make_request(prompt(4), GenerationConfig(**FREE), {}, MODEL.config)) for _ in range(3)]
    events = run(MODEL, programs)
    for _ in range(4):
        next(events)
    events.close()
    assert all(program.gi_frame is None for program in programs)


def test_closing_one_program_leaves_its_neighbours_alone():
    config = GenerationConfig(max_new_tokens=20, **FREE)
    programs = [generate(MODEL, make_request(prompt(4, i), config, {}, MODEL.config)) for i in range(3)]
    seen = {0: [], 1: [], 2: []}
    for row, event in run(MODEL, programs):
        seen[row].append(event)
        if row == 1 and len(seen[1]) == 2:
            programs[1].close()
    assert len(seen[1]) == 2
    for row in (0, 2):
        ids = [token for event in seen[row] if hasattr(event, "ids") for token in event.ids]
        assert ids == answer(MODEL, [prompt(4, row)], config)[0]["ids"]
