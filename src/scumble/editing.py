"""A region of a text, written anew: the canvas starts from what stands there, with as much noise as the caller chooses.

How the model is asked depends on what it has learnt:

- with an instruction, where the checkpoint has a chat template of its own: a user's message holds the instruction and
  the text, and the model's turn begins with the text before the region, so that what it writes next is the region;
- else by its infill form, or its repair form where something of the region is kept; an instruction stands above the
  text;
- else the text before the region is the prompt, and an instruction stands above it.

But for infilling, the region and the text behind it are one structure (filling.py): the text behind is fixed, and the
region ends where it begins.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scumble.diffusion import SeededNoise
from scumble.errors import InvalidRequest, shown
from scumble.filling import begin_with, near, unstructured, write_between
from scumble.settings import GenerationConfig
from scumble.structure import Template
from scumble.text.infill import can_infill, can_repair
from scumble.text.tokenizer import require_unicode

if TYPE_CHECKING:
    from scumble.asking import Asking

_WHOLE = "{instruction}\n\nDo this to the text below. Answer with the changed text and nothing else.\n\n{text}"
_PART = (
    "{instruction}\n\nDo this to the part of the text below that stands between {opening} and {closing}. Answer with "
    "the whole text, without these marks, and leave everything else as it is.\n\n{text}"
)


@dataclass(frozen=True)
class Edit:
    """text: the whole text after the edit. diff: what changed, as a unified diff. region: where the new part stands.

    passes: of each canvas.
    """

    text: str
    diff: str
    region: tuple[int, int] = (0, 0)
    passes: tuple[int, ...] = ()


def edit(
    llm: Asking,
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
        instruction: what to do, in words; None: what fits best there.
        region: first character and the one behind the last; None: the whole text.
        strength: 0 … 1, the share of the region's tokens that start as noise. 0 keeps the text as it is.
        config: settings; max_new_tokens limits the new region.

    Raises InvalidRequest.
    """
    require_unicode(text)
    begin, end = _checked_region(text, region)
    if instruction is not None and (not isinstance(instruction, str) or not instruction.strip()):
        raise InvalidRequest(f"the instruction must be a text that says what to do, found {shown(instruction)}")
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
        raise InvalidRequest(f"strength must lie in 0 … 1, found {shown(strength)}")
    if strength == 0:
        return Edit(text, "", (begin, end))
    parts = text[:begin], text[begin:end], text[end:]
    new, passes = _rewritten(llm, parts, instruction, strength, unstructured(config))
    whole = parts[0] + new + parts[2]
    return Edit(whole, diff_of(text, whole), (begin, begin + len(new)), passes)


def _rewritten(
    llm: Asking, parts: tuple[str, str, str], instruction: str | None, strength: float, config: GenerationConfig
) -> tuple[str, tuple[int, ...]]:
    """The new region, and the passes that it took. parts: before, the region, behind."""
    before, old, after = parts
    seed = config.seed or 0
    lead = before if instruction is None else f"{instruction}\n\n{before}"
    if instruction is not None and has_own_chat(llm):
        prompt = llm.encode_chat([{"role": "user", "content": message(instruction, parts)}])
        prompt += encoded(llm, before)
    elif can_infill(llm.tokenizer):
        hint = old if old and strength < 1 and can_repair(llm.tokenizer) else None
        draft = noisy(llm, old, strength, seed)
        answer = llm.answer(llm.fill_request(lead, after, config, hint, draft=draft))
        return answer.text, answer.passes
    else:
        prompt = begin_with(llm, lead)
    language = Template((("", None, None),), near(after))
    answer = write_between(llm, prompt, language, config, noisy(llm, old, strength, seed, near(after)))
    return language.parse(answer.text)[0], answer.passes


def has_own_chat(llm: Asking) -> bool:
    """Whether the checkpoint came with a chat template, so that it has learnt to follow instructions."""
    return llm.folder is not None and not llm.chat_template.is_built_in


def message(instruction: str, parts: tuple[str, str, str]) -> str:
    """What the user's message says."""
    before, old, after = parts
    if not before and not after:
        return _WHOLE.format(instruction=instruction, text=old)
    name = "edit"
    while f"<{name}>" in before + old + after or f"</{name}>" in before + old + after:
        name += "_"
    text = f"{before}<{name}>{old}</{name}>{after}"
    return _PART.format(instruction=instruction, opening=f"<{name}>", closing=f"</{name}>", text=text)


def encoded(llm: Asking, text: str) -> list[int]:
    return llm.tokenizer.encode(text) if llm.tokenizer is not None and text else []


def noisy(llm: Asking, text: str, strength: float, seed: int, behind: str = "") -> list[int]:
    """A text as a draft, with what stands behind it, an end and pads; of the text's ids a share of about `strength` is
    random."""
    ids = encoded(llm, text)
    noise = SeededNoise(seed)
    places = noise.uniform(0, 2**20, len(ids))  # a pass that no canvas takes
    random_ids = noise.initial(0, max(len(ids), 1), llm.model.config.vocab_size)
    for place in range(len(ids)):
        if float(places[place]) < strength:
            ids[place] = int(random_ids[place])
    return [*ids, *llm.draft(behind)]


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
