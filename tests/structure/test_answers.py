"""Structure through the public API: with random weights, at any seed and temperature, answers are valid and ended."""

import asyncio
import json
import random

import jsonschema_rs
import pytest
import torch
from pydantic import BaseModel
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from scumble import LLM, GenerationConfig
from scumble.decode.structured import Structured
from scumble.errors import InvalidRequest
from scumble.structure import JsonSchema, StructureError
from scumble.structure.automaton import START
from scumble.text import Tokenizer
from structure.walks import random_schema
from tiny import tiny_model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
}
WORDS = ['{"', '": ', '", "', "name", "age", "tags", "red", "true", "null", "ab", "  "]


def byte_tokenizer() -> Tokenizer:
    """Every byte, some longer pieces, and three special tokens: 0 pad, 1 end, 2 begin."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [word.replace(" ", "Ġ") for word in WORDS]
    names = ["<pad>", "<eos>", "<bos>", *letters, *pieces]
    backend = Backend(models.BPE(vocab={name: id for id, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    backend.add_special_tokens(["<pad>", "<eos>", "<bos>"])
    return Tokenizer(backend, token_names={"bos_token": "<bos>"})


@pytest.fixture(scope="module")
def llm() -> LLM:
    """Random weights."""
    tokenizer = byte_tokenizer()
    return LLM(tiny_model(vocab_size=tokenizer.vocab_size, pad_token_id=0, canvas_length=24), tokenizer)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0},
        {"temperature": 50.0},
        {"temperature": 0.01},
        {"canvas_length": 5},
        {"canvas_length": 1, "max_denoising_steps": 2},
        {"max_denoising_steps": 1},
        {"best_of": 2, "revisions": 2},
        {"commit": "sample"},
        {"decoder": "autoregressive"},
        {"decoder": "autoregressive", "temperature": 0},
        {"decoder": "autoregressive", "top_k": 2},
    ],
)
def test_always_valid_and_ended(llm: LLM, settings: dict) -> None:
    validator = jsonschema_rs.validator_for(PERSON)
    for seed in range(2):
        config = GenerationConfig(
            **{"json_schema": PERSON, "max_new_tokens": 40, "seed": seed, "max_denoising_steps": 4} | settings
        )
        generation = llm.generate("Who?", config)
        assert generation.finish_reason == "stop"
        assert validator.is_valid(generation.parsed), generation.text
        assert json.loads(generation.text) == generation.parsed


@pytest.mark.parametrize("decoder", ["diffusion", "autoregressive"])
def test_exactly_the_least_number_of_tokens_is_enough(llm: LLM, decoder: str) -> None:
    structure = llm.structuring.constraint(JsonSchema.of(PERSON))
    least = structure.compiled.tokens.fewest
    for seed in range(2):
        config = GenerationConfig(
            json_schema=PERSON, max_new_tokens=least, seed=seed, decoder=decoder, temperature=9.0,
            max_denoising_steps=6,
        )  # fmt: skip
        generation = llm.generate("Who?", config)
        assert len(generation.token_ids) == least
        assert generation.parsed == {"name": generation.parsed["name"], "age": generation.parsed["age"]}
    with pytest.raises(InvalidRequest, match=f"must be ≥ {least} "):
        llm.generate("Who?", GenerationConfig(json_schema=PERSON, max_new_tokens=least - 1, decoder=decoder))


def test_random_schemas(llm: LLM) -> None:
    check_random_schemas(llm, range(12))


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(1, 21))
def test_many_random_schemas(llm: LLM, hundred: int) -> None:
    check_random_schemas(llm, range(100 * hundred, 100 * hundred + 100))


@pytest.mark.slow
@pytest.mark.parametrize("ten", range(210, 220))
def test_random_schemas_with_the_embedded_model(ten: int) -> None:
    check_random_schemas(LLM.load(), range(10 * ten, 10 * ten + 10))


def check_random_schemas(llm: LLM, seeds: range) -> None:
    """All side by side, each schema by both decoders, from the smallest budget up."""
    asked = [one for seed in seeds for one in asked_for(llm, seed)]
    assert len(asked) > len(seeds)
    for (schema, config), generation in zip(
        asked, llm.answer_all([llm.text_request("x", config) for _, config in asked]), strict=True
    ):
        validator = jsonschema_rs.validator_for(schema, validate_formats=True)
        assert generation.finish_reason == "stop"
        assert len(generation.token_ids) <= (config.max_new_tokens or 0)
        assert validator.is_valid(generation.parsed), (schema, generation.text)


def asked_for(llm: LLM, seed: int) -> list[tuple[dict, GenerationConfig]]:
    """A random schema twice; nothing where it contradicts itself."""
    rng = random.Random(seed)
    schema = random_schema(rng)
    try:
        least = llm.structuring.constraint(JsonSchema.of(schema)).compiled.tokens.fewest
    except StructureError:
        return []
    return [
        (schema, GenerationConfig(
            json_schema=schema, max_new_tokens=least + rng.choice([0, 1, 30]), seed=seed, decoder=decoder,
            temperature=rng.choice([0, 0.7, 1.5, 8.0]), max_denoising_steps=rng.choice([1, 3]),
        ))
        for decoder in ("diffusion", "autoregressive")
    ]  # fmt: skip


def test_patterns_choices_and_grammars(llm: LLM) -> None:
    config = {"max_new_tokens": 20, "seed": 3, "max_denoising_steps": 6}
    assert llm.generate("x", GenerationConfig(choices=["yes", "no"], **config)).parsed in ("yes", "no")
    assert llm.generate("x", GenerationConfig(regex="[0-9]{4}-[a-f]{2}", **config)).text[4] == "-"
    text = llm.generate("x", GenerationConfig(grammar='r ::= "(" [a-z]* ")"', **config)).text
    assert text.startswith("(")
    assert text.endswith(")")


class Person(BaseModel):
    name: str
    age: int = 0


def test_a_pydantic_model_gives_its_objects(llm: LLM) -> None:
    config = GenerationConfig(max_new_tokens=40, max_denoising_steps=6)
    assert isinstance(llm.generate("x", config, schema=Person).parsed, Person)
    assert isinstance(
        llm.generate("x", GenerationConfig(max_new_tokens=40, max_denoising_steps=6, json_schema=Person)).parsed, Person
    )


def test_rows_with_and_without_structure_share_a_batch(llm: LLM) -> None:
    configs = [
        GenerationConfig(max_new_tokens=40, max_denoising_steps=6, seed=5, json_schema=PERSON),
        GenerationConfig(max_new_tokens=40, max_denoising_steps=6, seed=5),
        GenerationConfig(max_new_tokens=40, max_denoising_steps=6, seed=6, regex="[a-z]+"),
    ]
    prompts = [[5, 6, 7]] * 3
    together = llm.generate_ids(prompts, configs)
    alone = [llm.generate_ids(prompt, config) for prompt, config in zip(prompts, configs, strict=True)]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]


def test_pinned_ids_are_obeyed_or_refused(llm: LLM) -> None:
    tokenizer = llm.tokenizer
    assert tokenizer is not None
    x, brace = tokenizer.encode("x")[0], tokenizer.encode("}")[0]
    config = GenerationConfig(json_schema=PERSON, max_new_tokens=50, max_denoising_steps=6)
    pinned = llm.generate_ids([5], config, pinned={12: x})
    assert pinned.token_ids[12] == x
    assert jsonschema_rs.is_valid(PERSON, pinned.parsed)
    letters = GenerationConfig(regex="[a-w]{38}([yz]{9}|x[yz]{5})", max_new_tokens=50, max_denoising_steps=6)
    assert llm.generate_ids([5], letters, pinned={38: x}).text[38] == "x"  # on the second canvas of 24
    with pytest.raises(StructureError, match="pinned"):
        llm.generate_ids([5], config, pinned={0: brace})


def test_streams_and_async(llm: LLM) -> None:
    config = GenerationConfig(json_schema=PERSON, max_new_tokens=50, seed=2, max_denoising_steps=6)
    finished = list(llm.stream("x", config))[-1]
    later = asyncio.run(llm.agenerate("x", config))
    assert finished.generation.token_ids == later.token_ids  # type: ignore[union-attr]
    assert later.parsed == finished.generation.parsed  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"regex": "a", "choices": ["b"]}, "exclude"),
        ({"regex": "a", "stop": ["b"]}, "exclude"),
        ({"regex": "a", "ignore_eos": True}, "exclude"),
        ({"regex": ""}, "not empty"),
        ({"choices": []}, "at least one"),
        ({"json_schema": 3}, "JSON Schema"),
        ({"json_schema": {"type": "array", "unevaluatedItems": False}}, "unevaluatedItems"),
        ({"grammar": "x"}, "no rule"),
    ],
)
def test_refused_before_anything_runs(llm: LLM, settings: dict, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        llm.generate("x", GenerationConfig(**settings))


def test_the_mask_of_the_next_token(llm: LLM) -> None:
    structure: Structured = llm.structuring.constraint(JsonSchema.of({"const": "a"}))
    assert structure.state == START
    mask = structure.restrict(1, 4, llm.model.config.vocab_size).allowed[0]
    assert llm.tokenizer is not None
    allowed = {llm.tokenizer.token(int(id)) for id in torch.nonzero(mask)[:, 0]}
    assert allowed == {'"'}
