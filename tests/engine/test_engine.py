"""The engine's promises: reproducible in any batch, exact cuts, pins and drafts, end ids, logprobs, cancelling."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scumble import GenerationConfig, ScumbleError
from scumble.decode import Answer, Constraint, TokensCommitted, make_request
from scumble.diffusion import SeededNoise
from scumble.engine import Engine, Failed
from scumble.engine.scheduler import CHUNK
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
    with pytest.raises(ScumbleError, match="must be finite numbers, found nan; its weights may be damaged"):
        answer(model, [prompt(4)], GenerationConfig(max_new_tokens=8, **config))


def test_positions_without_any_doubt_are_no_error():
    """One id's embedding, and its logit with it, far above all others: every entropy is 0."""
    model = tiny_model(final_logit_softcapping=1e4)
    model.embed_tokens.weight *= 1e3
    row = answer(model, [prompt(4)], GenerationConfig(max_new_tokens=8, temperature=0, **FREE))[0]
    assert any(float(done.entropy.min()) == 0 for done in row["passes"])
    assert len(row["ids"]) == 8


# --- what shares a forward --------------------------------------------------------------------------------------------


@pytest.fixture
def forwards(monkeypatch) -> list[list[Segment]]:
    """The segments of every forward."""
    seen: list[list[Segment]] = []
    original = type(MODEL).forward

    def forward(self, segments):
        seen.append(list(segments))
        return original(self, segments)

    monkeypatch.setattr(type(MODEL), "forward", forward)
    return seen


def test_a_commit_rides_along_with_the_next_canvas_s_first_pass(forwards):
    """One forward a pass and one for the prompt; none for commits."""
    answer(MODEL, [prompt(4)], GenerationConfig(max_new_tokens=3 * L, **FREE))
    assert len(forwards) == 1 + 3 * FREE["max_denoising_steps"]
    assert [len(segments) for segments in forwards].count(2) == 2


def test_a_long_prompt_is_encoded_in_chunks(forwards):
    ids = prompt(CHUNK + 37)
    row = answer(MODEL, [ids], GenerationConfig(max_new_tokens=3, decoder="autoregressive", temperature=0))[0]
    assert [len(segments[0].tokens) for segments in forwards] == [CHUNK, 37, 1, 1]
    hidden = MODEL.encode(torch.tensor(ids), MODEL.new_cache())
    assert row["ids"][0] == int(MODEL.logits(hidden[-1:]).argmax())


def test_a_short_prompt_does_not_wait_for_a_long_one():
    """A chunk each in every step, who waited longest first; the short one is answered while the long one is read."""
    config = GenerationConfig(max_new_tokens=L, **FREE)
    engine, ends = Engine(tiny_model(max_position_embeddings=20_000)), []

    def note(name):
        return lambda event: ends.append(name) if isinstance(event, Answer) else None

    engine.add(make_request(prompt(8_000), config, {}, engine.model.config), note("long"))
    engine.step()
    engine.add(make_request(prompt(5), config, {}, engine.model.config), note("short"))
    steps = 0
    while not ends:
        engine.step()
        steps += 1
    assert ends == ["short"]
    assert steps <= 1 + FREE["max_denoising_steps"]
    while engine.has_work:
        engine.step()
    assert ends == ["short", "long"]


# --- cancelling and failing -------------------------------------------------------------------------------------------


def test_a_cancelled_row_is_gone_within_a_step_and_its_neighbours_go_on():
    config = GenerationConfig(max_new_tokens=20, **FREE)
    engine, seen = Engine(MODEL), {0: [], 1: [], 2: []}
    rows = [engine.add(make_request(prompt(4, i), config, {}, MODEL.config), seen[i].append, drafts=True) for i in seen]
    engine.step()
    engine.step()
    engine.cancel(rows[1])
    told = len(seen[1])
    while engine.has_work:
        engine.step()
    assert len(seen[1]) == told
    assert rows[1].cache is None
    for row in (0, 2):
        ids = [token for event in seen[row] if isinstance(event, TokensCommitted) for token in event.ids]
        assert ids == answer(MODEL, [prompt(4, row)], config)[0]["ids"]
    assert (engine.stats.finished, engine.stats.cancelled, engine.stats.slots) == (2, 1, 0)


@pytest.mark.parametrize("decoder", ["diffusion", "autoregressive"])
def test_a_prompt_that_is_being_read_can_be_cancelled(decoder):
    engine = Engine(MODEL)
    request = make_request(prompt(3_000), GenerationConfig(max_new_tokens=9, decoder=decoder), {}, MODEL.config)
    row = engine.add(request, lambda event: pytest.fail("nobody listens"))
    engine.step()
    engine.cancel(row)
    engine.step()
    assert not engine.has_work
    assert engine.stats.prefilled == CHUNK


class Broken(SeededNoise):
    """Noise of a caller's own that fails in the third pass."""

    def uniform(self, canvas_index, pass_index, length):
        if pass_index == 2:
            raise RuntimeError("this noise is broken")
        return super().uniform(canvas_index, pass_index, length)


class Refusing(Constraint):
    def after(self, ids):
        raise ValueError("nothing may follow")


@pytest.mark.parametrize("inputs", [{"noise": Broken(5)}, {"constraint": Refusing()}])
def test_an_error_ends_its_own_request_only(inputs):
    config = GenerationConfig(max_new_tokens=20, **FREE)
    engine, seen = Engine(MODEL), {0: [], 1: [], 2: []}
    for i, events in seen.items():
        request = make_request(prompt(4, i), config, {}, MODEL.config, **(inputs if i == 1 else {}))
        engine.add(request, events.append)
    while engine.has_work:
        engine.step()
    assert isinstance(seen[1][-1], Failed)
    assert str(seen[1][-1].error) in ("this noise is broken", "nothing may follow")
    for row in (0, 2):
        assert isinstance(seen[row][-1], Answer)
        ids = [token for event in seen[row] if isinstance(event, TokensCommitted) for token in event.ids]
        assert ids == answer(MODEL, [prompt(4, row)], config)[0]["ids"]


@pytest.mark.parametrize("decoder", ["diffusion", "autoregressive"])
@pytest.mark.parametrize("logprobs", [None, 1])
def test_an_output_that_is_not_a_number_ends_its_own_request_only(decoder, logprobs):
    """One id's embedding is damaged: the row whose prompt has it fails, its neighbour's answer stays what it was."""
    config = GenerationConfig(max_new_tokens=12, decoder=decoder, logprobs=logprobs, **FREE)
    model = tiny_model(sliding_window=40)
    poisoned = prompt(6, 1)
    engine, seen = Engine(model), ([], [])
    original = type(model).embed

    def embed(self, tokens):
        out = original(self, tokens)
        return out.masked_fill((tokens == 96)[:, None], float("nan"))

    alone = answer(model, [prompt(4)], config)[0]["ids"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "embed", embed)
        for ids, events in zip(([*poisoned, 96], prompt(4)), seen, strict=True):
            engine.add(make_request(ids, config, {}, model.config), events.append)
        while engine.has_work:
            engine.step()
    assert isinstance(seen[0][-1], Failed)
    assert "must be finite numbers" in str(seen[0][-1].error)
    found = [token for event in seen[1] if isinstance(event, TokensCommitted) for token in event.ids]
    assert 96 in alone or found == alone


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=10)
def test_tokens_are_the_same_whoever_joins_and_leaves(alone, seed):
    """Rows join at random steps; some are cancelled at random; the others' tokens are what they are alone."""
    dice = random.Random(seed)
    engine = Engine(MODEL)
    waiting = [(dice.randrange(len(ROWS)), dice.randrange(12)) for _ in range(7)]
    found, rows, step = [], [], 0
    while waiting or engine.has_work:
        for number, when in list(waiting):
            if when <= step:
                waiting.remove((number, when))
                events = []
                request = make_request(ROWS[number][0], ROWS[number][1], {}, MODEL.config)
                rows.append(engine.add(request, events.append))
                found.append((number, events))
        if rows and dice.random() < 0.1:
            engine.cancel(dice.choice(rows))
        engine.step()
        step += 1
    for number, events in found:
        ids = [token for event in events if isinstance(event, TokensCommitted) for token in event.ids]
        assert ids == alone[number]["ids"][: len(ids)]
        if events and isinstance(events[-1], Answer):
            assert ids == alone[number]["ids"]
