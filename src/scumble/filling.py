"""Holes in a text, and regions of it to write anew.

Models with an infill form (text/infill.py) fill one hole after another, each with the text around it as the prompt. For
all others the text from the first hole on becomes one structure: fixed text, hole, fixed text, …, so the law of the
canvas finds the holes' lengths itself. Either way the text outside is the caller's own, byte for byte.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scumble.diffusion import SeededNoise
from scumble.errors import InvalidRequest, shown
from scumble.settings import GenerationConfig
from scumble.structure import Choices, JsonSchema, Language, Regex, StructureError, Template
from scumble.structure.pattern import parse_pattern
from scumble.text.infill import can_infill, can_repair
from scumble.text.tokenizer import require_unicode

if TYPE_CHECKING:
    from scumble.llm import LLM

_VALUE = r"(?:\"(?:[^\"\\]|\\.)*\"|\S+?)"
_HOLE = re.compile(
    r"\{\{hole(?::(?P<name>\w+))?"
    # A value without quotes may hold braces, [a-z]{2,3}: then the last two of a run of } close the hole.
    rf"(?:\s*\}}\}}|(?P<options>(?:\s+\w+={_VALUE})+)\s*\}}\}}(?!\}}))"
)
_OPTION = re.compile(r"(\w+)=(\"(?:[^\"\\]|\\.)*\"|\S+)")
MOST_HOLES = 256
_TYPES = ("regex", "choices", "schema")


@dataclass(frozen=True)
class Hole:
    """A place to fill. most: tokens at most (characters, for models without an infill form); None: no limit of its own.

    language: what may stand there; None: anything.
    """

    name: str
    most: int | None = None
    language: Language | None = None


@dataclass(frozen=True)
class Fill:
    """text: the template with its holes filled. holes: what stands in each, by name."""

    text: str
    holes: Mapping[str, str]


@dataclass(frozen=True)
class Edit:
    """text: the whole text after the edit. diff: what changed, as a unified diff. region: where the new part stands."""

    text: str
    diff: str
    region: tuple[int, int] = field(default=(0, 0))


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


def fill(llm: LLM, template: str, config: GenerationConfig | None = None) -> Fill:
    """Fill every hole of a template. Raises InvalidRequest."""
    texts, holes = parse_template(template)
    config = _unstructured(config)
    if can_infill(llm.tokenizer):
        found = _one_by_one(llm, texts, holes, config)
    else:
        found = _all_at_once(llm, texts, holes, config)
    whole = "".join(text + found.get(hole.name, "") for text, hole in zip(texts, holes, strict=False)) + texts[-1]
    return Fill(whole, found)


def _one_by_one(llm: LLM, texts: Sequence[str], holes: Sequence[Hole], config: GenerationConfig) -> dict[str, str]:
    """Each hole by the model's infill form, from the first to the last."""
    found: dict[str, str] = {}
    before = texts[0]
    for number, hole in enumerate(holes):
        after = "".join(texts[number + 1 :])
        own = config
        if hole.most is not None:
            own = GenerationConfig(max_new_tokens=hole.most + 1).merged(vars(config))  # the end id is a token too
        request = llm.fill_request(before, after, own, language=hole.language)
        text = llm.answer(request).text
        found[hole.name] = text
        before += text + texts[number + 1]
    return found


def _all_at_once(
    llm: LLM, texts: Sequence[str], holes: Sequence[Hole], config: GenerationConfig, draft: Sequence[int] | None = None
) -> dict[str, str]:
    """The text from the first hole on as one structure."""
    parts: list[tuple[str, Language | None, int | None]] = [
        (text, hole.language, hole.most) for text, hole in zip(["", *texts[1:-1]], holes, strict=True)
    ]
    language = Template(tuple(parts), texts[-1])
    prompt = texts[0] and llm.encode_prompt(texts[0])
    bos = llm.tokenizer.bos_id if llm.tokenizer is not None else None
    if not prompt and bos is None:
        raise InvalidRequest(
            "the template begins with a hole, and this model has no id that begins a text; put text first"
        )
    request = llm.request(prompt or [bos], config, draft=draft, language=language)  # type: ignore[list-item]
    return dict(zip((hole.name for hole in holes), language.parse(llm.answer(request).text), strict=True))


def edit(
    llm: LLM,
    text: str,
    instruction: str | None = None,
    *,
    region: tuple[int, int] | None = None,
    strength: float = 0.5,
    config: GenerationConfig | None = None,
) -> Edit:
    """Write a region of a text anew, starting from what stands there.

    Args:
        text: the text.
        instruction: what to do; it stands in front of the text in the prompt.
        region: first character and the one behind the last; None: the whole text.
        strength: 0 … 1, the share of the region's tokens that start as noise. 0 keeps the text as it is.
        config: settings; max_new_tokens limits the new region.

    Raises InvalidRequest.
    """
    require_unicode(text)
    begin, end = _checked_region(text, region)
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
        raise InvalidRequest(f"strength must lie in 0 … 1, found {shown(strength)}")
    if strength == 0:
        return Edit(text, "", (begin, end))
    before, old, after = text[:begin], text[begin:end], text[end:]
    config = _unstructured(config)
    lead = before if instruction is None else f"{instruction}\n\n{before}"
    draft = noisy(llm, old, strength, config.seed or 0)
    if can_infill(llm.tokenizer):
        hint = old if old and strength < 1 and can_repair(llm.tokenizer) else None
        request = llm.fill_request(lead, after, config, hint, draft=draft)
        new = llm.answer(request).text
    else:
        new = _all_at_once(llm, [lead, after], [Hole("region")], config, draft)["region"]
    whole = before + new + after
    return Edit(whole, diff_of(text, whole), (begin, begin + len(new)))


def noisy(llm: LLM, text: str, strength: float, seed: int) -> list[int]:
    """A text as a draft: its ids, an end, pads; of the text's ids a share of about `strength` is random."""
    ids = list(llm.draft(text))
    length = len(llm.tokenizer.encode(text)) if llm.tokenizer is not None else 0
    noise = SeededNoise(seed)
    places = noise.uniform(0, 2**20, length)  # a pass that no canvas takes
    random_ids = noise.initial(0, max(length, 1), llm.model.config.vocab_size)
    for place in range(length):
        if float(places[place]) < strength:
            ids[place] = int(random_ids[place])
    return ids


def diff_of(old: str, new: str) -> str:
    before, after = (text.splitlines(keepends=True) for text in (old, new))
    found = difflib.unified_diff(before, after, "before", "after")
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in found)


def _checked_region(text: str, region: Any) -> tuple[int, int]:
    if region is None:
        return 0, len(text)
    whole = isinstance(region, Sequence) and len(region) == 2 and all(type(one) is int for one in region)
    if not whole or not 0 <= region[0] <= region[1] <= len(text):
        raise InvalidRequest(
            f"region must be two characters' places in 0 … {len(text)}, in order, found {shown(region)}"
        )
    return region[0], region[1]


def _unstructured(config: GenerationConfig | None) -> GenerationConfig:
    if config is not None and config.structure is not None:
        raise InvalidRequest(f"{config.structure} is for whole answers; a hole says its own type: {{{{hole regex=…}}}}")
    return config or GenerationConfig()
