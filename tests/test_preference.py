"""prefer="python", from prompt to answer."""

from __future__ import annotations

import pytest

from one_thread import one_thread_for_the_module  # noqa: F401
from scumble import LLM, Draft, GenerationConfig, TokenizerError
from scumble.text.python import begins_python, is_python
from tiny import EOS, tiny_model

FREE = {"ignore_eos": True, "max_denoising_steps": 3}


def test_a_preference_needs_a_tokenizer_where_the_caller_has_it():
    config = {"best_of": 2, "max_new_tokens": 8, **FREE}
    bare = LLM(tiny_model(), defaults={"prefer": "python"})
    assert bare.generate_ids([3, 4], GenerationConfig(**config)).token_ids
    with pytest.raises(TokenizerError, match="text needs one"):
        bare.generate_ids([3, 4], GenerationConfig(prefer="python", **config))


@pytest.mark.parametrize("seed", range(6))
def test_a_candidate_that_makes_python_is_committed_where_there_is_one(seed):
    llm = LLM.load()
    before = "def half(x):"
    config = GenerationConfig(best_of=5, revisions=0, prefer="python", max_new_tokens=24, canvas_length=24, seed=seed)
    *events, finished = llm.stream(before, config)
    last = {event.candidate: event for event in events if isinstance(event, Draft)}

    def fits(ids: tuple[int, ...]) -> bool:
        ended = EOS in ids
        text = before + llm.tokenizer.decode(ids[: ids.index(EOS)] if ended else ids)
        return is_python(text) if ended else begins_python(text)

    some_fit = any(fits(event.token_ids) for event in last.values())
    assert fits(finished.generation.token_ids) == some_fit
