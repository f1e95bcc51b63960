"""A structure together with another constraint: both hold, or one clear line says that they cannot."""

from dataclasses import replace

import pytest

from scumble import LLM, GenerationConfig
from scumble.decode import Forbidden, OneOf
from scumble.decode.constraint import All
from scumble.errors import InvalidRequest
from scumble.structure import StructureError
from structure.test_answers import byte_tokenizer
from tiny import tiny_model


@pytest.fixture(scope="module")
def llm():
    tokenizer = byte_tokenizer()
    return LLM(tiny_model(vocab_size=tokenizer.vocab_size, pad_token_id=0, canvas_length=12), tokenizer)


def answered(llm, decoder, commit, *texts):
    """An answer of the pattern in which none of these texts' ids stands."""
    config = GenerationConfig(
        regex="[xyz]{3,9}", max_new_tokens=14, seed=4, decoder=decoder, commit=commit, max_denoising_steps=3
    )
    request = llm.request([5], config)
    forbidden = Forbidden(frozenset(llm.tokenizer.encode("".join(texts))))
    return llm.answer(replace(request, constraint=All((request.constraint, forbidden))))


@pytest.mark.parametrize(
    ("decoder", "commit"), [("diffusion", None), ("diffusion", "sample"), ("autoregressive", None)]
)
def test_both_hold(llm, decoder, commit):
    answer = answered(llm, decoder, commit, "x", "y")
    assert answer.finish_reason == "stop"
    assert set(answer.text) == {"z"}
    assert 3 <= len(answer.text) <= 9


def test_what_leaves_nothing_says_so(llm):
    with pytest.raises(StructureError, match="pinned or forbidden leave no canvas"):
        answered(llm, "diffusion", None, "x", "y", "z")
    with pytest.raises(StructureError, match="with what else is asked of them"):
        answered(llm, "autoregressive", None, "x", "y", "z")
    with pytest.raises(InvalidRequest, match="leave no id for position 0 of what comes next"):
        All((Forbidden(frozenset({1})), OneOf((1,)))).restrict(2, 5, 9)
