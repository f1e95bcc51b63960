"""Reads: how probable given labels are at slots of a text, and how probable a text is. Nothing is generated."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scumble.diffusion import SeededNoise
from scumble.errors import InvalidRequest, TokenizerError, shown
from scumble.events import TokenLogprobs
from scumble.model import Segment
from scumble.ops import VocabQuery
from scumble.text.tokenizer import require_unicode

if TYPE_CHECKING:
    from scumble.asking import Asking

CHUNK = 512  # tokens that are encoded at a time
MOST_TOKENS = 2048  # of a forward
SHORTEST = 16  # positions of a canvas; pads fill it up, as behind the end of a training text
MOST_DRAWS = 1024

Probabilities = dict[str, dict[str, float]]


class Read(NamedTuple):
    """probabilities: slot -> label -> mean over draws of noise. stderr: of those means; 0 for a single draw."""

    probabilities: Probabilities
    stderr: Probabilities


@dataclass(frozen=True)
class Score:
    """A text under the causal model. logprobs: nats, one a token; the first token has none where nothing begins a text.

    tokens: what each id writes, as text.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        return math.fsum(self.logprobs)


@dataclass(frozen=True)
class Question:
    """A template as ids: context, then a canvas of fixed ids with slots. slots: name -> labels -> their ids."""

    context: tuple[int, ...]
    fixed: tuple[tuple[int, ...], ...]  # before, between and behind the slots
    slots: Mapping[str, Mapping[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Look:
    """One canvas of a question: ids [L], and where a slot begins whose labels of one length are read there."""

    question: int
    draw: int
    slot: str
    labels: tuple[str, ...]
    ids: Tensor
    place: int


def score(llm: Asking, text: str) -> Score:
    """How probable the causal model finds a text, token by token. Raises InvalidRequest, PromptTooLong."""
    ids = llm.encode_prompt(text)
    model, tokenizer = llm.model, llm.tokenizer
    assert tokenizer is not None
    room = model.config.max_position_embeddings
    if len(ids) > room:
        raise InvalidRequest(f"the text has {len(ids)} tokens; the model's context holds {room}")
    begin = 1 if tokenizer.bos_id is not None else 0
    found = tuple(one.logprob for one in score_ids(llm, ids))
    own = tuple(ids[begin:])
    return Score(own, tuple(tokenizer.decode([id], skip_special=False) for id in own), found)


def score_ids(llm: Asking, ids: Sequence[int], top: int = 0) -> list[TokenLogprobs]:
    """How probable the causal model finds ids[1:], each behind what stands before it; with the `top` likeliest ids in
    the place of each. Other requests have their turns between chunks."""
    model = llm.model
    cache = model.new_cache()
    found: list[TokenLogprobs] = []
    for first in range(0, len(ids), CHUNK):
        following = torch.tensor(ids[first + 1 : first + CHUNK + 1], device=model.device)
        if not len(following):
            break
        with llm.alone(), torch.no_grad():
            hidden = model.encode(torch.tensor(ids[first : first + CHUNK]), cache)
            said = model.vocab_head(hidden[: len(following)], VocabQuery(targets=following, top=top))
        assert said.target_logprobs is not None
        others: list[tuple[tuple[int, float], ...]] = [()] * len(following)
        if top:
            assert said.top_ids is not None
            assert said.top_logprobs is not None
            pairs = zip(said.top_ids.tolist(), said.top_logprobs.tolist(), strict=True)
            others = [tuple(zip(names, values, strict=True)) for names, values in pairs]
        for id, logprob, more in zip(following.tolist(), said.target_logprobs.tolist(), others, strict=True):
            found.append(TokenLogprobs(id, logprob, more))
    return found


def read(
    llm: Asking,
    templates: Sequence[str],
    slots: Mapping[str, Sequence[str]],
    *,
    draws: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
) -> list[Read]:
    """Probabilities of the labels at the slots of each template, {{name}} in the text for every name in `slots`.

    What stands before the last line of the first slot is context; questions with the same context share it. Slots are
    noise, all else is pinned, and one pass says what the model expects there. A label of several tokens has the product
    of its tokens' probabilities; labels are compared with each other alone.
    draws: of noise, whose probabilities are averaged. temperature: divides log-probabilities (for calibration).
    The numbers are the same, bit for bit, alone and in any batch.
    """
    for name, value, low, high in (("draws", draws, 1, MOST_DRAWS), ("temperature", temperature, 1e-3, 1e3)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise InvalidRequest(f"{name} must lie in {low:g} … {high:g}, found {shown(value)}")
    made = Templates(llm, seed)
    questions = [made.question(template, slots) for template in templates]
    looks = [
        look
        for number, question in enumerate(questions)
        for draw in range(draws)
        for look in made.canvases(number, question, draw)
    ]
    logs: dict[tuple[int, str, int], dict[str, float]] = {}
    for look, found in zip(looks, run(llm, questions, looks), strict=True):
        logs.setdefault((look.question, look.slot, look.draw), {}).update(zip(look.labels, found, strict=True))
    return [
        averaged(
            {
                slot: [
                    softmax({label: logs[number, slot, draw][label] for label in labels}, temperature)
                    for draw in range(draws)
                ]
                for slot, labels in slots.items()
            }
        )
        for number in range(len(questions))
    ]


class Templates:
    """Makes questions and their canvases for one call: what several of them share is encoded, and drawn, once."""

    def __init__(self, llm: Asking, seed: int) -> None:
        if llm.tokenizer is None:
            raise TokenizerError("reads need a tokenizer, and this model has none")
        self._shape, self._bos = llm.model.config, llm.tokenizer.bos_id
        self._encode = functools.cache(llm.tokenizer.encode)
        self._encode_prompt = functools.cache(llm.encode_prompt)
        self._noise = functools.cache(
            lambda draw, index, length: SeededNoise(seed, draw).initial(index, length, self._shape.vocab_size).tolist()
        )

    def question(self, template: str, slots: Mapping[str, Sequence[str]]) -> Question:
        require_unicode(template, "the template")
        slot = re.compile(r"\{\{(" + "|".join(map(re.escape, slots)) + r")\}\}")
        names = slot.findall(template)
        if sorted(names) != sorted(slots) or not names:
            asked = ", ".join(f"{{{{{name}}}}}" for name in slots)
            raise InvalidRequest(f"the template must hold each slot once ({asked}); it holds {names or 'none'}")
        fixed = slot.split(template)[::2]
        head, line = fixed[0], ""
        cut = head.rstrip(" ").rfind("\n") + 1
        head, line = head[:cut], head[cut:]
        context = self._encode_prompt(head) if head else [] if self._bos is None else [self._bos]
        if not context:
            raise InvalidRequest(
                "the template needs a line of text above the slot's; this model has no id that begins a text"
            )
        texts = [line, *fixed[1:]]
        encoded: dict[str, dict[str, tuple[int, ...]]] = {}
        for number, name in enumerate(names):
            labels = list(slots[name])
            if (
                isinstance(slots[name], str)
                or len(set(labels)) < 2
                or not all(isinstance(one, str) and one for one in labels)
            ):
                raise InvalidRequest(f"slot {name!r} needs at least two different labels, found {shown(slots[name])}")
            before = texts[number]
            blank = " " if before.endswith(" ") else ""  # tokens begin with the blank before them
            texts[number] = before[: len(before) - len(blank)]
            encoded[name] = {label: tuple(self._encode(blank + label)) for label in dict.fromkeys(labels)}
        return Question(tuple(context), tuple(tuple(self._encode(text)) if text else () for text in texts), encoded)

    def canvases(self, number: int, question: Question, draw: int) -> list[Look]:
        """One canvas for each slot and each length that labels of it have."""
        shape = self._shape
        widths = {name: min(map(len, labels.values())) for name, labels in question.slots.items()}
        looks = []
        for index, (name, labels) in enumerate(question.slots.items()):
            for width in sorted({len(ids) for ids in labels.values()}):
                own = widths | {name: width}
                length = sum(map(len, question.fixed)) + sum(own.values()) + 1
                if length > shape.canvas_length:
                    raise InvalidRequest(
                        f"the question needs a canvas of {length} tokens; the model's has {shape.canvas_length}; move "
                        "text to lines above"
                    )
                noise = self._noise(draw, index, length)
                ids, places = list(question.fixed[0]), {}
                for (slot, wide), behind in zip(own.items(), question.fixed[1:], strict=True):
                    places[slot] = len(ids)
                    ids += noise[len(ids) : len(ids) + wide]
                    ids += behind
                if shape.eos_token_ids:
                    ids.append(shape.eos_token_ids[0])
                pad = shape.pad_token_id
                if pad is not None:
                    ids += [pad] * (min(SHORTEST, shape.canvas_length) - len(ids))
                chosen = tuple(label for label, own_ids in labels.items() if len(own_ids) == width)
                looks.append(Look(number, draw, name, chosen, torch.tensor(ids), places[name]))
        return looks


def run(llm: Asking, questions: Sequence[Question], looks: Sequence[Look]) -> list[list[float]]:
    """Log-probability of every label of every look. Each context is encoded once and shared by its canvases.

    Where operations are batch-invariant, contexts and canvases share forwards of up to MOST_TOKENS tokens. Elsewhere
    each has a forward of its own, so that no number depends on what is read beside it.
    """
    model = llm.model
    most = MOST_TOKENS if model.ops.batch_invariant else 1
    by_context: dict[tuple[int, ...], list[int]] = {}
    for place, look in enumerate(looks):
        by_context.setdefault(questions[look.question].context, []).append(place)
    found: dict[int, list[float]] = {}
    segments: list[Segment] = []
    places: list[int] = []  # whose canvases are among the segments

    def flush() -> None:
        hidden = model(segments)
        if places:
            found.update(
                zip(places, label_logprobs(llm, questions, [looks[one] for one in places], hidden), strict=True)
            )
        segments.clear()
        places.clear()

    with llm.alone(), torch.no_grad():
        for context, own in by_context.items():
            cache = model.new_cache()
            for first in range(0, len(context), CHUNK):
                ids = torch.tensor(context[first : first + CHUNK], device=model.device)
                segments.append(Segment(ids, cache, "encode", quiet=True))
                if first + CHUNK < len(context) or most == 1:
                    flush()
            for place in own:
                segments.append(Segment(looks[place].ids.to(model.device), cache, "denoise"))
                places.append(place)
                if sum(len(segment.tokens) for segment in segments) >= most:
                    flush()
        if segments:
            flush()
    return [found[place] for place in range(len(looks))]


def label_logprobs(
    llm: Asking, questions: Sequence[Question], looks: Sequence[Look], hidden: Tensor
) -> list[list[float]]:
    """hidden [N, D] of the looks' canvases, one after another -> one number a label of each."""
    rows: list[int] = []
    targets: list[int] = []
    sizes: list[list[int]] = []  # tokens of each label, by look
    begin = 0
    for look in looks:
        labels = [questions[look.question].slots[look.slot][label] for label in look.labels]
        rows += [begin + look.place + i for ids in labels for i in range(len(ids))]
        targets += [id for ids in labels for id in ids]
        sizes.append([len(ids) for ids in labels])
        begin += len(look.ids)
    wanted = torch.tensor(targets, device=hidden.device)
    logs = llm.model.vocab_head(
        hidden[torch.tensor(rows, device=hidden.device)], VocabQuery(targets=wanted)
    ).target_logprobs
    assert logs is not None
    each = logs.double().cpu().split([sum(own) for own in sizes])
    return [[float(part.sum()) for part in one.split(own)] for one, own in zip(each, sizes, strict=True)]


def softmax(logs: Mapping[str, float], temperature: float) -> dict[str, float]:
    high = max(logs.values())
    weights = {label: math.exp((value - high) / temperature) for label, value in logs.items()}
    total = math.fsum(weights.values())
    return {label: weight / total for label, weight in weights.items()}


def averaged(found: Mapping[str, Sequence[Mapping[str, float]]]) -> Read:
    means: Probabilities = {}
    errors: Probabilities = {}
    for slot, each in found.items():
        n = len(each)
        means[slot] = {label: math.fsum(one[label] for one in each) / n for label in each[0]}
        errors[slot] = {
            label: math.sqrt(math.fsum((one[label] - mean) ** 2 for one in each) / (n - 1) / n) if n > 1 else 0.0
            for label, mean in means[slot].items()
        }
    return Read(means, errors)
