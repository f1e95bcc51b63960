"""The Responses API through the real OpenAI client: whole, streamed, in the background, continued, forgotten."""

from __future__ import annotations

import pytest

pytest.importorskip("openai", reason="the OpenAI client is not installed")

import httpx
import openai
from serving import SHORT, running, until

from scumble import GenerationConfig
from scumble.serve.keys import Keys
from scumble.serve.store import open_store

MODEL = "tiny"


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=30) as one:
        yield one


def respond(client, **options):
    return client.responses.create(
        **{"model": MODEL, "input": "paint", "max_output_tokens": 12, "extra_body": {**SHORT, "seed": 5}} | options
    )


def own(llm, messages):
    return llm.chat(messages, GenerationConfig(max_new_tokens=12, seed=5, **SHORT))


def test_a_response_is_what_the_library_answers(client, llm):
    answer = respond(client)
    assert answer.output_text == own(llm, [{"role": "user", "content": "paint"}]).text
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 12
    again = client.responses.retrieve(answer.id)
    assert again.output_text == answer.output_text
    names = {"presence_penalty", "frequency_penalty", "top_logprobs", "max_tool_calls", "service_tier", "completed_at"}
    assert names <= set(answer.model_dump()), "the specification's fields are there, also those that say nothing"
    assert (answer.temperature, answer.top_p) == (1, 1)
    (item,) = client.responses.input_items.list(answer.id).data
    assert item.content[0].text == "paint"
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_a_stream_has_every_event_once_and_in_order(client):
    whole = respond(client)
    events = list(respond(client, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-1] == "response.incomplete"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    replayed = list(client.responses.retrieve(events[-1].response.id, stream=True, starting_after=3))
    assert [event.sequence_number for event in replayed] == list(range(4, len(events)))


def test_a_response_goes_on_from_another(client, llm):
    first = respond(client)
    second = respond(client, input="again", previous_response_id=first.id, instructions="be brief")
    messages = [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "paint"},
        {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "again"},
    ]  # fmt: skip
    assert second.output_text == own(llm, messages).text
    assert second.usage.input_tokens == len(llm.encode_chat(messages))
    with pytest.raises(openai.NotFoundError):
        respond(client, previous_response_id="resp_x")


def test_in_the_background(client):
    whole = respond(client)
    started = respond(client, background=True)
    assert started.status in ("queued", "in_progress")
    until(lambda: client.responses.retrieve(started.id).status == "incomplete")
    assert client.responses.retrieve(started.id).output_text == whole.output_text
    long = respond(client, background=True, max_output_tokens=3000, extra_body={"ignore_eos": True, "seed": 1})
    assert client.responses.cancel(long.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(whole.id)


def test_tools_go_through(client, http):
    items = [
        {"role": "user", "content": "weather?"},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
    ]
    tools = [{"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}]
    assert respond(client, input=items, tools=tools).usage.input_tokens > 10
    with pytest.raises(openai.BadRequestError):
        respond(client, input=items[:1] + items[2:])


def test_a_response_belongs_to_its_key(llm, tmp_path):
    keys = Keys(open_store(tmp_path / "keys.db"))
    secrets = [keys.create(name, ["generate"]) for name in ("one", "two")]
    with running(llm, state=tmp_path) as one:
        clients = [httpx.Client(base_url=one.url, headers={"x-api-key": secret}, timeout=30) for secret in secrets]
        made = clients[0].post("/v1/responses", json={"input": "paint", "max_output_tokens": 4, **SHORT}).json()
        assert clients[0].get(f"/v1/responses/{made['id']}").status_code == 200
        for path in ("", "/input_items"):
            assert clients[1].get(f"/v1/responses/{made['id']}{path}").status_code == 404
        assert clients[1].delete(f"/v1/responses/{made['id']}").status_code == 404
        follow = {"input": "x", "previous_response_id": made["id"]}
        assert clients[1].post("/v1/responses", json=follow).status_code == 404
        for client in clients:
            client.close()
