"""Tool calls by construction: what is written can always be read, and its arguments satisfy the tool's schema."""

import random
from typing import Any

import jsonschema_rs
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from scumble import LLM, GenerationConfig, InvalidRequest
from scumble.structure import JsonSchema, Limits, Markers, StructureError, TextOrCalls, Tool, ToolCalls
from scumble.structure.automaton import Automaton, Budget
from scumble.text import ChatTemplate, Tokenizer
from scumble.text.tool_calls import QUOTE, Item, parse_calls
from structure.walks import random_schema, walk_symbols
from tiny import tiny_model

MARKERS = Markers(opening=1000, closing=1001, quote=1002)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 6},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
                "units": {"enum": ["C", "F", None]},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
NOW = {"name": "now"}
TOOLS = [WEATHER, NOW]


# --- the language ----------------------------------------------------------------------------------------------------


def compile_(*tools: Tool, several: bool = False) -> Automaton:
    return ToolCalls(tools, MARKERS, several).automaton(Budget(Limits(seconds=60)))


def read(symbols: list[int], machine: Automaton) -> list[Item]:
    """Bytes and special tokens as the items that stand between a call's markers."""
    items: list[Item] = []
    text = bytearray()
    for symbol in symbols:
        if symbol < 256:
            text.append(symbol)
        elif machine.symbols[symbol - 256] == MARKERS.quote:
            items += [text.decode(), QUOTE]
            text = bytearray()
    return [*items, text.decode()]


@pytest.mark.parametrize("seed", range(40))
def test_every_call_can_be_read_and_is_valid(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(1, 8))
def test_many_calls_can_be_read_and_are_valid(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * hundred + 100):
        check(seed)


def check(seed: int) -> None:
    rng = random.Random(seed)
    schema = {"type": "object", "properties": {"a b": random_schema(rng), "x:y": random_schema(rng, 1)}}
    try:
        machine = compile_(Tool.of("f", schema))
    except StructureError as error:
        if "contradicts itself" not in str(error):
            raise
        return
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    for _ in range(6):
        items = read(walk_symbols(machine, rng), machine)
        (call,) = parse_calls(items)
        assert call.name == "f"
        assert validator.is_valid(call.arguments), (schema, items)


def test_calls_are_written_as_chat_templates_write_them() -> None:
    schema = {"properties": {"b": {"const": {"z": [1, "q"], "A": 'say "hi"'}}, "a": {"const": True}}}
    schema["required"] = ["a", "b"]  # type: ignore[assignment]
    machine = compile_(Tool.of("f", schema | {"additionalProperties": False}))
    items = read(walk_symbols(machine, random.Random(0)), machine)
    assert items == ["call:f{a:true,b:{A:", QUOTE, 'say "hi"', QUOTE, ",z:[1,", QUOTE, "q", QUOTE, "]}}"]


def test_one_of_several_tools_and_several_calls() -> None:
    tools = Tool.of("now"), Tool.of("nowhere", {"properties": {}, "additionalProperties": False})
    machine = compile_(*tools, several=True)
    seen = set()
    for seed in range(30):
        calls = walk_symbols(machine, random.Random(seed), 40)
        text = "".join("|" if symbol > 255 else chr(symbol) for symbol in calls)
        seen.update(text.strip("|").split("||"))
    assert seen == {"call:now{}", "call:nowhere{}"}


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        (Tool.of("bad", {"unevaluatedItems": False, "type": "object"}), "tool bad: .*unevaluatedItems"),
        (Tool.of("bad", {"type": "string"}), "tool bad: no value"),
        (Tool.of("no", {"required": ["a"], "properties": {"a": False}}), "tool no: no value"),
        (Tool.of("deep", '{"properties":{"a":' * 70 + "{}" + "}}" * 70), "tool deep: .*nested more than 60"),
    ],
)
def test_parameters_that_cannot_be_guaranteed_are_refused_by_the_tools_name(tool: Tool, words: str) -> None:
    with pytest.raises(StructureError, match=words):
        compile_(Tool.of("now"), Tool.of("nowhere"), tool)


def test_without_strict_such_arguments_are_any_object() -> None:
    machine = compile_(Tool.of("f", {"type": "object", "unevaluatedProperties": 3, "$dynamicRef": "#x"}, strict=False))
    (call,) = parse_calls(read(walk_symbols(machine, random.Random(1)), machine))
    assert isinstance(call.arguments, dict)


def test_text_and_calls_have_keys_of_their_own() -> None:
    calls = ToolCalls((Tool.of("now"),), MARKERS)
    languages = [
        calls,
        ToolCalls(calls.tools, MARKERS, False),
        TextOrCalls(calls),
        TextOrCalls(calls, JsonSchema("{}")),
    ]
    assert len({language.key for language in languages}) == 4


# --- through the public face -----------------------------------------------------------------------------------------

SPECIAL = ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>",
           '<|"|>', "<|tool_response>", "<tool_response|>", "<|tool>", "<tool|>"]  # fmt: skip


def byte_tokenizer() -> Tokenizer:
    """Every byte, some longer pieces, and the markers."""
    pieces = ["call:", "city:", "days:", "weather{", "},", "thought", "ab"]
    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces]
    backend = Backend(models.BPE(vocab={name: id for id, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    backend.add_special_tokens(SPECIAL)
    return Tokenizer(backend, token_names={"bos_token": "<bos>"})


@pytest.fixture(scope="module")
def llm() -> LLM:
    """Random weights."""
    tokenizer = byte_tokenizer()
    made = LLM(tiny_model(vocab_size=tokenizer.vocab_size, pad_token_id=0, canvas_length=24), tokenizer)
    made.__dict__["chat_template"] = ChatTemplate.built_in(tokenizer)
    return made


def ask(llm: LLM, seed: int = 0, decoder: str = "diffusion", config: dict[str, Any] | None = None, **options: Any):
    settings = GenerationConfig(
        **{"max_new_tokens": 90, "seed": seed, "max_denoising_steps": 3, "decoder": decoder, "temperature": 2.0}
        | (config or {})
    )
    return llm.chat([{"role": "user", "content": "hi"}], settings, **{"tools": TOOLS} | options)


def check_calls(answer) -> None:
    validator = jsonschema_rs.validator_for(WEATHER["function"]["parameters"])  # type: ignore[index]
    assert answer.finish_reason == "stop"
    assert answer.malformed_tool_calls == ()
    for call in answer.tool_calls:
        assert call.name in ("weather", "now")
        assert call.arguments == {} if call.name == "now" else validator.is_valid(call.arguments)


@pytest.mark.parametrize("decoder", ["diffusion", "autoregressive"])
@pytest.mark.parametrize("seed", range(3))
def test_a_choice_guarantees_calls_with_random_weights(llm: LLM, seed: int, decoder: str) -> None:
    required = ask(llm, seed, decoder, tool_choice="required")
    check_calls(required)
    assert (len(required.tool_calls) > 0, required.text) == (True, "")
    forced = ask(llm, seed, decoder, tool_choice="weather")
    check_calls(forced)
    assert [call.name for call in forced.tool_calls] == ["weather"]
    optional = ask(llm, seed, decoder, tool_choice="auto", parallel_tool_calls=False)
    check_calls(optional)
    assert len(optional.tool_calls) <= 1


def test_a_named_tool_may_be_called_several_times_where_that_is_asked(llm: LLM) -> None:
    counts = {
        len(ask(llm, seed, "autoregressive", tool_choice="now", parallel_tool_calls=True).tool_calls)
        for seed in range(6)
    }
    assert min(counts) >= 1
    assert max(counts) > 1


def test_thinking_may_come_before_calls(llm: LLM) -> None:
    answers = [ask(llm, seed, "autoregressive", tool_choice="now", enable_thinking=True) for seed in range(6)]
    assert any(answer.thinking is not None for answer in answers)
    for answer in answers:
        check_calls(answer)
        assert answer.thinking_closed
        assert len(answer.tool_calls) == 1


def test_a_thought_that_the_prompt_opened_ends_before_the_calls(llm: LLM) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "now"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    config = GenerationConfig(max_new_tokens=60, max_denoising_steps=3)
    answer = llm.chat(messages, config, tools=TOOLS, tool_choice="now", enable_thinking=True)
    assert answer.thinking is not None
    assert [call.name for call in answer.tool_calls] == ["now"]
    said = llm.chat(messages, GenerationConfig(max_new_tokens=60, max_denoising_steps=3, choices=["yes", "no"]),
                    enable_thinking=True)  # fmt: skip
    assert said.thinking is not None
    assert said.parsed in ("yes", "no")


def test_text_of_a_structure_or_calls(llm: LLM) -> None:
    kinds = set()
    for seed in range(8):
        answer = ask(llm, seed, "autoregressive", tool_choice="auto", config={"choices": ["yes", "no"]})
        check_calls(answer)
        assert bool(answer.tool_calls) != (answer.text in ("yes", "no"))
        assert answer.parsed == (None if answer.tool_calls else answer.text)
        kinds.add(bool(answer.tool_calls))
    assert kinds == {True, False}


def test_none_leaves_the_tools_out_of_the_prompt(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    config = GenerationConfig(max_new_tokens=4, max_denoising_steps=2)
    without = llm.chat(messages, config)
    assert llm.chat(messages, config, tools=TOOLS, tool_choice="none").prompt_tokens == without.prompt_tokens
    assert llm.chat(messages, config, tools=TOOLS).prompt_tokens > without.prompt_tokens


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tool_choice": "wether"}, "a tool's name .weather, now"),
        ({"tool_choice": {"name": "now"}}, "tool_choice must be"),
        ({"tool_choice": "required", "tools": []}, "there are no tools"),
        ({"tool_choice": "now", "tools": None}, "there are no tools"),
        ({"tool_choice": "auto", "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tool_choice": "auto", "tools": [NOW, NOW]}, "same name"),
        ({"tool_choice": "auto", "tools": [{"name": "a b"}]}, "tool's name must be"),
        ({"tool_choice": "auto", "tools": [{"name": "auto"}]}, "tool's name must be"),
        ({"tool_choice": "auto", "tools": [{}]}, "a tool must be"),
        ({"tool_choice": "auto", "tools": [{"name": "f", "parameters": 3}]}, "tool f: .*JSON Schema"),
        ({"tool_choice": "required", "config": {"choices": ["a"]}}, "asks for a call"),
        ({"tool_choice": "required", "config": {"ignore_eos": True}}, "exclude"),
        ({"tool_choice": "required", "config": {"max_new_tokens": 3}}, "max_new_tokens must be"),
    ],
)
def test_refused_before_anything_runs(llm: LLM, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        ask(llm, **options)


def test_a_vocabulary_without_the_markers_is_refused() -> None:
    tiny = LLM.load()
    with pytest.raises(InvalidRequest, match=r"lacks <\|tool_call>"):
        tiny.chat([{"role": "user", "content": "hi"}], tools=TOOLS, tool_choice="auto")
