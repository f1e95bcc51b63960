"""The real Anthropic client against a real server; thinking and tools as blocks, from a scripted model."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("anthropic", reason="the Anthropic client is not installed")

import anthropic
from serving import SHORT

from scumble import GenerationConfig
from scumble.events import Committed, Finished, Generation, ToolCall

MODEL = "tiny"
USER = [{"role": "user", "content": "paint"}]


@pytest.fixture
def client(served):
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0, timeout=30) as one:
        yield one


def ask(client, **options):
    return client.messages.create(
        **{"model": MODEL, "messages": USER, "max_tokens": 12, "extra_body": {**SHORT, "seed": 5}} | options
    )


def test_a_message_is_what_the_library_answers(client, llm):
    answer = ask(client)
    own = llm.chat(USER, GenerationConfig(max_new_tokens=12, seed=5, **SHORT))
    assert "".join(block.text for block in answer.content if block.type == "text") == own.text
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.input_tokens == own.prompt_tokens
    assert answer.usage.output_tokens == 12
    assert answer.role == "assistant"


def test_a_stream_is_the_same_message(client):
    whole = ask(client)
    with client.messages.stream(
        model=MODEL, messages=USER, max_tokens=12, extra_body={**SHORT, "seed": 5, "drafts": True}
    ) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert text == whole.content[0].text
    assert last.content[0].text == text
    assert last.usage.output_tokens == 12
    assert last.stop_reason == "max_tokens"


def test_a_stop_sequence_is_named(client):
    text = ask(client).content[0].text
    cut = ask(client, stop_sequences=[text[3:5], "never there"])
    assert cut.content[0].text == text[: text.index(text[3:5])]
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", text[3:5])
    assert ask(client).stop_sequence is None


def test_the_specification_s_fields_are_there_also_those_that_say_nothing(client):
    answer = ask(client).model_dump()
    assert {"container", "stop_details"} <= set(answer)
    usage = {"cache_creation", "inference_geo", "output_tokens_details", "server_tool_use", "service_tier"}
    assert usage <= set(answer["usage"])
    assert "citations" in answer["content"][0]


def test_systems_blocks_and_counts(client, llm):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "paint"}, {"type": "text", "text": "thin"}]},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "again"},
    ]
    counted = client.messages.count_tokens(model=MODEL, system="be brief", messages=messages)
    own = llm.encode_chat([
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "paint\nthin"},
        {"role": "assistant", "content": "done"}, {"role": "user", "content": "again"},
    ])  # fmt: skip
    assert counted.input_tokens == len(own)
    assert ask(client, system="be brief", messages=messages).usage.input_tokens == len(own)


def test_thinking_and_tools_are_blocks(client, served, monkeypatch):
    call = ToolCall("weather", {"city": "Rome"}, "call_1")
    generation = Generation(
        text="Let me look.", token_ids=(5, 6, 7), finish_reason="stop", prompt_tokens=3, passes=(2,), evaluations=2,
        reads=0, seconds=0.1, first_text_seconds=0.05, thinking="where?", thinking_tokens=1, tool_calls=(call,),
    )  # fmt: skip

    async def scripted(job, drafts):
        yield Committed((5,), "", 0, thinking="whe")
        yield Committed((6,), "Let me ", 0, thinking="re?")
        yield Committed((7,), "look.", 0, tool_calls=(call,))
        yield Finished(generation)

    monkeypatch.setattr(served.service.backend, "_start", scripted)
    whole = ask(client)
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use"]
    assert whole.stop_reason == "tool_use"
    assert whole.content[2].input == {"city": "Rome"}
    with client.messages.stream(model=MODEL, messages=USER, max_tokens=12) as stream:
        last = stream.get_final_message()
    assert [block.type for block in last.content] == ["thinking", "text", "tool_use"]
    assert last.content[0].thinking == "where?"
    assert last.content[1].text == "Let me look."
    assert last.content[2].input == {"city": "Rome"}
    assert last.stop_reason == "tool_use"

    import openai

    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as other:
        asked: Any = USER
        choice: Any = other.chat.completions.create(model=MODEL, messages=asked).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls[0].function.name == "weather"
        assert choice.message.tool_calls[0].function.arguments == '{"city": "Rome"}'
        assert choice.message.reasoning_content == "where?"
        chunks: Any = other.chat.completions.create(model=MODEL, messages=asked, stream=True)
        deltas = [chunk.choices[0].delta for chunk in chunks]
        assert "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas) == "where?"
        assert [delta.tool_calls[0].id for delta in deltas if delta.tool_calls] == ["call_1"]


def test_results_of_tools_go_back_by_name(http):
    body = {
        "model": MODEL,
        "messages": [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"}]},
        ],
    }  # fmt: skip
    assert http.post("/v1/messages/count_tokens", json=body).json()["input_tokens"] > 0
    body["messages"][2]["content"][0]["tool_use_id"] = "call_2"
    refused = http.post("/v1/messages/count_tokens", json=body)
    assert refused.status_code == 400
    assert refused.json()["type"] == "error"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "claude"}, anthropic.NotFoundError),
        ({"max_tokens": 0}, anthropic.BadRequestError),
        ({"extra_body": {"temperature": -1}}, anthropic.BadRequestError),
        ({"messages": []}, anthropic.BadRequestError),
        ({"messages": [{"role": "user", "content": "paint " * 5000}]}, anthropic.BadRequestError),
        ({"messages": [{"role": "system", "content": "x"}]}, anthropic.BadRequestError),
        ({"tool_choice": {"type": "any"}}, anthropic.BadRequestError),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {
            "type": "url", "url": "http://127.0.0.1:9/x"}}]}]}, anthropic.BadRequestError),
    ],
)  # fmt: skip
def test_errors_have_anthropic_s_form(client, options, error):
    with pytest.raises(error) as caught:
        ask(client, **options)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["request_id"].startswith("req_")
    assert caught.value.request_id == caught.value.body["request_id"]


def test_fill_in_and_edit(http, llm):
    ask_fim = {"prompt": "the canvas ", "suffix": " thin", "max_tokens": 8, "seed": 2, **SHORT}
    filled = http.post("/v1/fim/completions", json=ask_fim).json()
    own = llm.infill("the canvas ", " thin", GenerationConfig(max_new_tokens=8, seed=2, **SHORT))
    assert filled["choices"][0]["message"]["content"] == own.text
    text = "the canvas is painted thick"
    edit = {"text": text, "region": [14, 21], "max_tokens": 8, "seed": 2, **SHORT}
    edited = http.post("/v1/edit/completions", json=edit).json()
    own = llm.repair(text[:14], text[14:21], text[21:], GenerationConfig(max_new_tokens=8, seed=2, **SHORT))
    assert edited["replacement"] == own.text
    assert edited["text"] == text[:14] + own.text + text[21:]
    assert edited["text"][slice(*edited["region"])] == own.text
    streamed = http.post("/v1/edit/completions", json={**edit, "stream": True, "drafts": True}).text
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0] for event in events]
    assert "".join(one["delta"].get("content", "") for one in deltas) == own.text
    assert any("draft" in one.get("scumble", {}) for one in deltas)
    for region in ([5, 5], [-1, 3], [0, 10**9], [1], "ab"):
        assert http.post("/v1/edit/completions", json={**edit, "region": region}).status_code == 400
