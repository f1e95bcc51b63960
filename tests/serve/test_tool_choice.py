"""Calls that are asked for are made, through each API's own client, by a model of random weights."""

from __future__ import annotations

import json

import anthropic
import openai
import pytest

MODEL = "tiny"
USER = [{"role": "user", "content": "weather?"}]
CITY = {
    "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
UNCERTAIN = {"type": "object", "properties": {"city": {"type": "array", "unevaluatedItems": False}}}
FUNCTIONS = [{"name": "weather", "description": "of a city", "parameters": CITY}, {"name": "now"}]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
QUICK = {"max_denoising_steps": 3}
SEEDED = {**QUICK, "seed": 3}


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture
def claude(served):
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as one:
        yield one


def chat(client, **options):
    settings = {"model": MODEL, "messages": USER, "tools": TOOLS, "seed": 3, "max_tokens": 120, "extra_body": QUICK}
    return client.chat.completions.create(**{**settings, **options})


def check(name: str, arguments: str | dict) -> None:
    given = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert given == {} if name == "now" else given["city"] in ("Rome", "Oslo")


def test_a_call_is_required(client):
    choice = chat(client, tool_choice="required").choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    for call in choice.message.tool_calls:
        check(call.function.name, call.function.arguments)


def test_a_call_of_one_tool_whole_and_streamed(client):
    named = {"tool_choice": {"type": "function", "function": {"name": "weather"}}}
    (call,) = chat(client, **named).choices[0].message.tool_calls
    assert call.function.name == "weather"
    check("weather", call.function.arguments)
    deltas = [chunk.choices[0].delta for chunk in chat(client, **named, stream=True)]
    (streamed,) = [delta.tool_calls[0] for delta in deltas if delta.tool_calls]
    assert streamed.function == call.function or streamed.function.arguments == call.function.arguments
    assert not any(delta.content for delta in deltas)


def test_no_call_and_at_most_one(client, llm):
    none = chat(client, tool_choice="none")
    assert none.usage.prompt_tokens == len(llm.encode_chat(USER))
    assert none.choices[0].message.tool_calls is None
    for seed in range(3):
        calls = chat(client, tool_choice="required", parallel_tool_calls=False, seed=seed).choices[0].message.tool_calls
        assert len(calls) == 1
    free = chat(client, parallel_tool_calls=False).choices[0]
    assert len(free.message.tool_calls or ()) <= 1


def test_strict_says_what_is_guaranteed(client, llm):
    def tools(**more):
        return [{"type": "function", "function": {"name": "f", "parameters": UNCERTAIN, **more}}]

    assert chat(client, tools=tools()).choices, "left to the model, any schema goes"
    forced = {"tool_choice": "required"}
    for options in ({"tools": tools(strict=True)}, {"tools": tools(), **forced}):
        with pytest.raises(openai.BadRequestError, match="unevaluatedItems"):
            chat(client, **options)
    (call,) = chat(client, tools=tools(strict=False), **forced, parallel_tool_calls=False).choices[0].message.tool_calls
    assert isinstance(json.loads(call.function.arguments), dict)
    same = [chat(client, tools=tools(**more)).usage.prompt_tokens for more in ({}, {"strict": False})]
    assert same[0] == same[1], "the model does not read it"


def test_responses(client):
    flat = [{"type": "function", **function} for function in FUNCTIONS]
    ask = {
        "model": MODEL,
        "input": "weather?",
        "tools": flat,
        "max_output_tokens": 120,
        "extra_body": SEEDED,
    }
    answer = client.responses.create(**ask, tool_choice={"type": "function", "name": "weather"})
    (call,) = [item for item in answer.output if item.type == "function_call"]
    check(call.name, call.arguments)
    assert answer.tool_choice.name == "weather"
    required = client.responses.create(**ask, tool_choice="required", parallel_tool_calls=False)
    assert [item.type for item in required.output] == ["function_call"]
    assert required.parallel_tool_calls is False


def test_messages(claude):
    tools = [
        {"name": "weather", "input_schema": CITY},
        {"name": "now", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}},
    ]
    ask = {"model": MODEL, "messages": USER, "tools": tools, "max_tokens": 120, "extra_body": SEEDED}
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        answer = claude.messages.create(**ask, tool_choice=choice)
        assert answer.stop_reason == "tool_use"
        for block in answer.content:
            assert block.type == "tool_use"
            check(block.name, block.input)
    one = claude.messages.create(**ask, tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert len(one.content) == 1
    assert all(block.type == "text" for block in claude.messages.create(**ask, tool_choice={"type": "none"}).content)


def test_messages_in_a_format(claude):
    answer = claude.messages.create(
        model=MODEL, messages=USER, max_tokens=120, extra_body=SEEDED,
        output_config={"format": {"type": "json_schema", "schema": CITY}, "effort": "low"},
    )  # fmt: skip
    check("weather", answer.content[0].text)


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [], "tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tool_choice": "weather"},
        {"tool_choice": "required", "max_tokens": 2},
        {"tool_choice": "required", "extra_body": {"ignore_eos": True}},
        {"tools": [*TOOLS, *TOOLS], "tool_choice": "required"},
    ],
    ids=["no tools", "another tool", "a name alone", "no room", "no end", "twice the same"],
)
def test_what_cannot_be_is_refused(client, options):
    with pytest.raises(openai.BadRequestError):
        chat(client, **options)


def test_a_model_without_markers_says_so(client, llm, monkeypatch):
    known = {name: id for name, id in llm.tokenizer.special_tokens.items() if "tool_call" not in name}
    monkeypatch.setattr(llm.tokenizer, "special_tokens", known)
    with pytest.raises(openai.BadRequestError, match="markers of tool calls"):
        chat(client, tool_choice="required")
    assert chat(client).choices
