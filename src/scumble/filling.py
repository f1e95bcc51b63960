"""Holes in a text.

Models with an infill form (text/infill.py) fill one hole after another, each with the text around it as the prompt. For
all others the text from the first hole on becomes one structure: fixed text, hole, fixed text, …, so the law of the
canvas finds the holes' lengths itself. Either way the text outside is the caller's own, byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scumble.errors import InvalidRequest, shown
from scumble.events import Generation
from scumble.settings import RELEASE_DEFAULTS, GenerationConfig
from scumble.structure import Choices, JsonSchema, Language, Regex, StructureError, Template
from scumble.structure.pattern import parse_pattern
from scumble.text.infill import can_infill
from scumble.text.tokenizer import require_unicode

if TYPE_CHECKING:
    from scumble.asking import Asking

_VALUE = r"(?:\"(?:[^\"\\]|\\.)*\"|\S+?)"
_HOLE = re.compile(
    r"\{\{hole(?::(?P<name>\w+))?"
    # A value without quotes may hold braces, [a-z]{2,3}: then the last two of a run of } close the hole.
    rf"(?:\s*\}}\}}|(?P<options>(?:\s+\w+={_VALUE})+)\s*\}}\}}(?!\}}))"
)
_OPTION = re.compile(r"(\w+)=(\"(?:[^\"\\]|\\.)*\"|\S+)")
MOST_HOLES = 256
NEAR = 400  # characters
_TYPES = ("regex", "choices", "schema")


@dataclass(frozen=True)
class Hole:
    """A place to fill. most: tokens at most (characters, for models without an infill form); None: no limit of its own.

    language: what may stand there; None: anything.
    """

    name: str
    most: int | None = None
    language: Language | None = None


Pieces = tuple[tuple[str, float], ...]
_Found = tuple[dict[str, str], dict[str, Pieces]]


@dataclass(frozen=True)
class Fill:
    """text: the template with its holes filled. holes: what stands in each, by name. logprobs: the same in pieces, what
    each token writes there and its log-probability in nats, where the settings ask for them; else None.
    """

    text: str
    holes: Mapping[str, str]
    logprobs: Mapping[str, tuple[tuple[str, float], ...]] | None = None


def parse_template(template: str) -> tuple[list[str], list[Hole]]:
    """Fixed texts (one more than holes) and the holes between them. Raises InvalidRequest.

    A hole is {{hole}}, {{hole:name}}, and may have options: max=12, regex=[a-z]+, choices="yes|no", schema="{…}".
    Values with white space, or with } behind the hole, stand in double quotes, with \\" and \\\\ inside.
    """
    require_unicode(template, "the template")
    texts, holes, at = [], [], 0
    for match in _HOLE.finditer(template):
        texts.append(template[at : match.start()])
        holes.append(_hole(match, len(holes)))
        at = match.end()
    texts.append(template[at:])
    if not holes:
        hint = "; one begins with {{hole but cannot be read" if "{{hole" in template else ""
        raise InvalidRequest(f"the template has no hole; write {{{{hole}}}} or {{{{hole:name max=12}}}}{hint}")
    left = next((text for text in texts if "{{hole" in text), None)
    if left is not None:
        raise InvalidRequest(f"a hole cannot be read: {shown(left[left.index('{{hole') :])}")
    if len(holes) > MOST_HOLES:
        raise InvalidRequest(f"the template has {len(holes)} holes; the limit is {MOST_HOLES}")
    names = [hole.name for hole in holes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"two holes are called {twice!r}; give each its own name")
    return texts, holes


def _hole(match: re.Match[str], number: int) -> Hole:
    name = match["name"] or str(number)
    options: dict[str, str] = {}
    for key, value in _OPTION.findall(match["options"] or ""):
        if key in options or key not in ("max", *_TYPES):
            raise InvalidRequest(f"hole {name!r}: options are max, regex, choices and schema, once each; found {key!r}")
        options[key] = json.loads(value) if value.startswith('"') else value
    kinds = [kind for kind in _TYPES if kind in options]
    if len(kinds) > 1:
        raise InvalidRequest(f"hole {name!r}: {' and '.join(kinds)} exclude each other")
    most = options.get("max")
    if most is not None and not (most.isdecimal() and 0 < int(most) < 2**20):
        raise InvalidRequest(f"hole {name!r}: max must be a whole number from 1 up, found {shown(most)}")
    try:
        return Hole(name, None if most is None else int(most), _language(options))
    except StructureError as error:
        raise StructureError(f"hole {name!r}: {error}") from None


def _language(options: Mapping[str, str]) -> Language | None:
    if "regex" in options:
        parse_pattern(options["regex"])  # damaged ones are refused before anything runs
        return Regex(options["regex"])
    if "choices" in options:
        return Choices.of(options["choices"].split("|"))
    return JsonSchema.of(options["schema"]) if "schema" in options else None


def fill(llm: Asking, template: str, config: GenerationConfig | None = None) -> Fill:
    """Fill every hole of a template. Raises InvalidRequest."""
    texts, holes = parse_template(template)
    config = unstructured(config)
    find = _one_by_one if can_infill(llm.tokenizer) else _all_at_once
    found, pieces = find(llm, texts, holes, config)
    whole = "".join(text + found.get(hole.name, "") for text, hole in zip(texts, holes, strict=False)) + texts[-1]
    return Fill(whole, found, None if config.logprobs is None else pieces)


def _one_by_one(llm: Asking, texts: Sequence[str], holes: Sequence[Hole], config: GenerationConfig) -> _Found:
    """Each hole by the model's infill form, from the first to the last."""
    found: dict[str, str] = {}
    pieces: dict[str, Pieces] = {}
    before = texts[0]
    for number, hole in enumerate(holes):
        after = "".join(texts[number + 1 :])
        own = config
        if hole.most is not None:
            own = GenerationConfig(max_new_tokens=hole.most + 1).merged(vars(config))  # the end id is a token too
        request = llm.fill_request(before, after, own, language=hole.language)
        answer = llm.answer(request)
        found[hole.name] = answer.text
        first = len(request.typed)
        pieces[hole.name] = pieces_of(llm, answer, first, first + len(answer.text))
        before += answer.text + texts[number + 1]
    return found, pieces


def _all_at_once(llm: Asking, texts: Sequence[str], holes: Sequence[Hole], config: GenerationConfig) -> _Found:
    """The text from the first hole on as one structure."""
    parts = tuple((text, hole.language, hole.most) for text, hole in zip(["", *texts[1:-1]], holes, strict=True))
    language = Template(parts, near(texts[-1]))
    answer = write_between(llm, begin_with(llm, texts[0]), language, config)
    found = dict(zip((hole.name for hole in holes), language.parse(answer.text), strict=True))
    pieces, at = {}, 0
    for (text, *_), (name, written) in zip(parts, found.items(), strict=True):
        at += len(text)
        pieces[name] = pieces_of(llm, answer, at, at + len(written))
        at += len(written)
    return found, pieces


def pieces_of(llm: Asking, answer: Generation, begin: int, end: int) -> Pieces:
    """What each token of an answer writes between two of its characters, and its log-probability."""
    assert llm.tokenizer is not None
    found, ids, before = [], [], ""
    for token in answer.logprobs or ():
        ids.append(token.token_id)
        now = llm.tokenizer.decode(ids)
        if now.endswith("\ufffd"):  # half a character: the token that ends it writes it
            continue
        piece = now[max(begin, len(before)) : end]
        found += [(piece, token.logprob)] if piece else []
        before = now
    return tuple(found)


def begin_with(llm: Asking, text: str) -> list[int]:
    """Prompt ids of a text, or of none. Raises InvalidRequest where nothing begins a text."""
    if text:
        return llm.encode_prompt(text)
    bos = None if llm.tokenizer is None else llm.tokenizer.bos_id
    if bos is None:
        raise InvalidRequest(
            "the text begins with what is to be written, and this model has no id that begins a text; put text first"
        )
    return [bos]


def near(text: str) -> str:
    """As much of the text behind the last hole as the model is shown: what is further away tells it little, and every
    character is a state of the structure."""
    if len(text) <= NEAR:
        return text
    return text[: text.find("\n", NEAR // 2, NEAR) + 1 or NEAR]


def write_between(
    llm: Asking, prompt: Sequence[int], language: Template, config: GenerationConfig, draft: Sequence[int] | None = None
) -> Generation:
    """What the model writes where holes lie between fixed texts.

    max_new_tokens is of the holes: the tokens of the fixed texts are added, as far as the context holds them.
    """
    assert llm.tokenizer is not None
    fixed = [*(text for text, *_ in language.parts), language.last]
    most = config.merged(llm.defaults).max_new_tokens or RELEASE_DEFAULTS["max_new_tokens"]
    most += sum(len(llm.tokenizer.encode(text)) for text in fixed if text) + 1
    room = llm.model.config.max_position_embeddings - len(prompt)
    own = GenerationConfig(max_new_tokens=max(1, min(most, room))).merged(vars(config))
    return llm.answer(llm.request(list(prompt), own, draft=draft, language=language))


def unstructured(config: GenerationConfig | None) -> GenerationConfig:
    if config is not None and config.structure is not None:
        raise InvalidRequest(f"{config.structure} is for whole answers; a hole says its own type: {{{{hole regex=…}}}}")
    return config or GenerationConfig()
