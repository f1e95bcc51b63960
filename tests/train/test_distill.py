"""Learning from a teacher's answers, and from the canvases that the sampler makes of one's own proposals."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from scumble import DataError, GenerationConfig
from scumble.checkpoint import load_checkpoint, save_checkpoint
from scumble.diffusion import Canvas, EntropyBound, Proposal
from scumble.llm import embedded_path
from scumble.train import loop as loop_module
from scumble.train import objective as objective_module
from scumble.train.batches import Batch, Specials
from scumble.train.config import Objective
from scumble.train.corrupt import Noised
from scumble.train.distill import LEAST, distilled, open_teacher
from scumble.train.greedy import greedy
from scumble.train.loop import train
from scumble.train.objective import losses
from scumble.train.read_config import read_train_config
from scumble.train.trajectory import Look, first_look, sampler_step
from tiny import EOS, answer, prompt, tiny_model

from .runs import edit, plan, tuning_plan

SPECIALS = Specials(bos=2, eos=EOS, pad=0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Random weights that like to end: of many prompts, some get an answer that comes to its end."""
    model = tiny_model(dtype=torch.bfloat16)
    model.embed_tokens.weight[EOS] *= 2.0
    folder = tmp_path_factory.mktemp("teacher")
    save_checkpoint(model, folder)
    return open_teacher(str(folder), torch.device("cpu"))


def batch(rows: int = 12, width: int = 9) -> Batch:
    ids = np.stack([np.array(prompt(width + 8, seed)) for seed in range(rows)])
    return Batch(ids, np.full(rows, width + 8), prompt=width, canvas=4, epoch=0, copies=2)


def test_answers_are_the_teacher_s_greedy_ones_behind_the_same_prompts(teacher):
    given, teacher = batch(), copy.deepcopy(teacher).float()  # no rounding to decide between two likely tokens
    found = distilled(given, teacher, SPECIALS)
    assert found.taught is not None
    assert (found.prompt, found.canvas, found.copies) == (9, 4, 2)
    config = GenerationConfig(decoder="autoregressive", temperature=0, max_new_tokens=LEAST)
    wanted = [answer(teacher, [row[:9].tolist()], config)[0]["ids"] for row in given.ids]
    ended = [ids[-1] == EOS for ids in wanted]
    assert 0 < sum(ended) < len(ended), "the model was to end some and not others"
    assert found.taught.tolist() == ended
    for number, (source, ids) in enumerate(zip(given.ids, wanted, strict=True)):
        right = [*source[:9].tolist(), *ids] if ended[number] else source[: given.lengths[number]].tolist()
        length = found.lengths[number]
        assert found.ids[number, :length].tolist() == right, "an answer without an end is left for the row's own text"
        assert (found.ids[number, length:] == SPECIALS.pad).all()
    assert (found.ids.shape[1] - 9) % 4 == 0


@pytest.mark.parametrize("rows", [1, 7])
def test_many_rows_at_once_get_what_the_engine_gives_each(rows):
    model = tiny_model()
    prompts = torch.tensor([prompt(11, seed) for seed in range(rows)])
    config = GenerationConfig(decoder="autoregressive", temperature=0, max_new_tokens=40)
    wanted = [answer(model, [row], config)[0]["ids"] for row in prompts.tolist()]
    assert greedy(model, prompts, 40) == wanted


def test_answers_have_a_longest_length(teacher):
    assert all(1 <= len(ids) <= 3 for ids in greedy(teacher, torch.tensor([prompt(5, seed) for seed in range(4)]), 3))


def test_rows_to_repair_keep_their_own_right_answer(folder, monkeypatch):
    """A teacher that writes a repair wrong would be believed."""
    # The small documents in the embedded model's tokens, which have the markers.
    markers = ('tokenizer = "tokenizer"', f'tokenizer = "{embedded_path()}"')
    plan(folder, "teacher", 1)
    first = train(edit(folder, "teacher", markers), lambda report: None)
    share = "[objective]\ninfill_share = 1.0\nrepair_share = 1.0\ndraft_share = 0.5\ndistill_share = 1.0\n"
    own = tuning_plan(
        folder,
        "student",
        first,
        markers,
        ("[run]", share + "trajectory_share = 0.5\n\n[run]"),
        ("steps = 2", "steps = 8"),
    )
    asked = []

    def listen(batch, *_):
        asked.append(batch)

    monkeypatch.setattr(loop_module, "distilled", listen)
    seen = []
    train(own, seen.append)
    assert len(seen) == 8
    assert all(batch.drafts is None for batch in asked)
    assert len(asked) < 8, "three of four holes are whole lines"


# --- one step of the sampler ------------------------------------------------------------------------------------------


def canvases(seed: int = 0) -> Noised:
    generator = torch.Generator().manual_seed(seed)
    return Noised(torch.randint(97, (3, 2, 8), generator=generator), torch.rand(3, 2, generator=generator), [5, 13])


def test_a_look_has_the_tempered_distribution_s_soft_embedding_entropy_and_samples():
    model, noised = tiny_model(), canvases()
    hidden = torch.randn(48, 32, generator=torch.Generator().manual_seed(1))
    look = first_look(model, hidden, noised.level, torch.Generator().manual_seed(2))
    heat = (0.4 + 0.4 * noised.level).flatten().repeat_interleave(8)[:, None]
    shares = torch.softmax(model.logits(hidden) / heat, -1)
    torch.testing.assert_close(look.soft, shares @ model.embed_tokens.weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(look.entropy, torch.distributions.Categorical(shares).entropy(), rtol=1e-4, atol=1e-4)
    again = torch.stack([
        first_look(model, hidden, noised.level, torch.Generator().manual_seed(seed)).sample for seed in range(400)
    ])  # fmt: skip
    seen = torch.stack([(again == token).float().mean(0) for token in range(97)], dim=1)
    # Five standard deviations of each share's estimate, and four draws for the rarest ids.
    assert ((seen - shares).abs() < 5 * (shares * (1 - shares) / 400).sqrt() + 4 / 400).all()
    assert first_look(model, hidden, noised.level, None).sample is None


def test_a_sampler_step_is_the_sampler_s():
    noised = canvases()
    generator = torch.Generator().manual_seed(3)
    look = Look(
        torch.zeros(48, 32), torch.randint(97, (48,), generator=generator), torch.rand(48, generator=generator)
    )  # fmt: skip
    stepped = sampler_step(noised, look, 1.0, 97, torch.Generator().manual_seed(4))
    rule, free = EntropyBound(1.0, "changed"), torch.zeros(8, dtype=torch.bool)
    for number, (before, after) in enumerate(
        zip(noised.ids.flatten(0, 1), stepped.ids.flatten(0, 1), strict=True)
    ):  # fmt: skip
        part = slice(8 * number, 8 * number + 8)
        proposal = Proposal(look.sample[part], look.sample[part], look.entropy[part])
        accepted = rule.accept(Canvas(before, free, 0), proposal)
        assert accepted.any()
        assert torch.equal(after[accepted], look.sample[part][accepted])
    assert not torch.equal(stepped.ids, noised.ids)
    assert torch.equal(stepped.level, noised.level)


def test_the_second_pass_looks_at_the_stepped_canvas_and_wants_the_right_ids(monkeypatch):
    """A sampler that finds every answer leaves nothing to be mended: the loss falls to that of clean canvases."""
    model = tiny_model()
    ids = torch.tensor([prompt(21, seed) for seed in range(4)])
    lengths = torch.full((4,), 21)
    own = Objective(self_conditioning=1.0, trajectory_share=1.0, noise_power=0.01)  # noise alone

    def loss(objective: Objective) -> float:
        return losses(model, ids, lengths, 5, 8, objective, torch.Generator().manual_seed(1)).denoise

    blind = loss(replace(own, trajectory_share=0.0))
    right = torch.stack([ids[:, 5:13], ids[:, 13:21]], dim=1)
    monkeypatch.setattr(objective_module, "sampler_step", lambda noised, *_: replace(noised, ids=right))
    assert loss(own) < blind - 0.5


def test_a_share_of_the_canvases_holds_every_proposal(monkeypatch):
    bounds = []

    def listen(noised, look, bound, *_):
        bounds.append(bound)
        return noised

    monkeypatch.setattr(objective_module, "sampler_step", listen)
    model, ids = tiny_model(), torch.tensor([prompt(13, seed) for seed in range(2)])
    own = Objective(self_conditioning=1.0, trajectory_share=1.0, trajectory_bound=2.5, unbounded_share=0.5)
    for seed in range(20):
        losses(model, ids, torch.full((2,), 13), 5, 8, own, torch.Generator().manual_seed(seed))
    assert set(bounds) == {2.5, float("inf")}


def test_rows_that_keep_their_own_text_do_not_see_the_sampler_s_canvases(monkeypatch):
    """Where many answers would do, a proposal that differs from this one is no error."""
    model = tiny_model()
    ids = torch.tensor([prompt(13, seed) for seed in range(4)])
    own = Objective(self_conditioning=1.0, trajectory_share=1.0)

    def loss(followed: list[bool], stepped: int) -> float:
        """With a sampler that leaves `stepped` everywhere."""
        monkeypatch.setattr(
            objective_module,
            "sampler_step",
            lambda noised, *_: replace(noised, ids=torch.full_like(noised.ids, stepped)),
        )
        mask = torch.tensor(followed)
        return losses(
            model, ids, torch.full((4,), 13), 5, 8, own, torch.Generator().manual_seed(1), followed=mask
        ).denoise

    assert loss([False] * 4, 3) == loss([False] * 4, 4)
    assert loss([False, True, False, False], 3) != loss([False, True, False, False], 4)


def test_the_teacher_keeps_up_with_its_student(folder, monkeypatch):
    """Every teacher_every steps, and when a run is resumed, the weights as they are become the teacher's."""
    markers = ('tokenizer = "tokenizer"', f'tokenizer = "{embedded_path()}"')
    plan(folder, "taught", 1)
    first = train(edit(folder, "taught", markers), lambda report: None)
    share = "[objective]\ndistill_share = 1.0\nteacher_every = 3\n\n[run]"
    seen: list[torch.Tensor] = []

    def listen(batch, teacher, specials):
        seen.append(teacher.norm.weight.clone())
        return batch

    monkeypatch.setattr(loop_module, "distilled", listen)
    own = tuning_plan(folder, "keeps-up", first, markers, ("[run]", share), ("steps = 2", "steps = 7"))
    train(own, lambda report: None)
    assert [torch.equal(seen[0], weight) for weight in seen] == [True] * 3 + [False] * 4
    assert torch.equal(seen[3], seen[5])
    assert not torch.equal(seen[5], seen[6])
    trained = load_checkpoint(folder / "keeps-up" / "model", torch.bfloat16).norm.weight
    train(
        tuning_plan(folder, "keeps-up", first, markers, ("[run]", share), ("steps = 2", "steps = 8")),
        lambda report: None,
    )
    assert torch.equal(seen[7], trained), "the resumed run's teacher"


# --- the plan ---------------------------------------------------------------------------------------------------------

PLAN = """
[data]
train = "text.jsonl"
validation = "text.jsonl"
tokenizer = "tokenizer"
[objective]
{objective}
[run]
out = "out"
steps = 1
{init}
"""


@pytest.mark.parametrize(
    ("objective", "init", "message"),
    [
        ("distill_share = 1.5", 'init = "first"', "distill_share must lie in 0 … 1, found 1.5"),
        ("trajectory_share = 0.5", 'init = "first"', r"share of the distilled and the repair batches; set"),
        ("distill_share = 0.5\nunbounded_share = 0.5", 'init = "first"', "share of the sampler's canvases; set"),
        ("teacher_every = 5", 'init = "first"', r"replaces the teacher of a distillation; set objective.distill_share"),
        (
            "distill_share = 0.5\nunbounded_share = 2.0",
            'init = "first"',
            "unbounded_share must lie in 0 … 1",
        ),
        ("draft_share = 0.5", 'init = "first"', r"share of the repair rows' canvases and needs .* found 0.0"),
        ("draft_share = 1.5", 'init = "first"', "draft_share must lie in 0 … 1, found 1.5"),
        ("distill_share = 0.5\ntrajectory_bound = 0.0", 'init = "first"', "trajectory_bound must lie in"),
    ],
)
def test_plans_that_cannot_be(tmp_path, objective, init, message):
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(objective=objective, init=init))
    with pytest.raises(DataError, match=message):
        read_train_config(plan)


def test_a_new_model_has_no_teacher(tmp_path):
    plan = tmp_path / "plan.toml"
    shape = "hidden_size layers heads head_dim kv_heads full_head_dim full_kv_heads mlp experts experts_per_token"
    model = "\n".join(f"{name} = 2" for name in f"{shape} expert_mlp sliding_window context canvas_length".split())
    plan.write_text(f"[model]\n{model}\n" + PLAN.format(objective="distill_share = 0.5", init=""))
    with pytest.raises(DataError, match=r"distill_share \(0.5\) needs a teacher; give .* run.init"):
        read_train_config(plan)


def test_the_teacher_is_the_checkpoint_in_bfloat16(teacher, tmp_path):
    save_checkpoint(tiny_model(), tmp_path)
    opened = open_teacher(str(tmp_path), torch.device("cpu"))
    assert opened.dtype is torch.bfloat16
    assert torch.equal(opened.norm.weight, load_checkpoint(tmp_path, torch.bfloat16).norm.weight)
