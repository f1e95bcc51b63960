"""The built-in chat template, shape by shape. The expected strings are what the released template renders, but where a
comment says otherwise; they were compared with a copy of it (not kept here) when they were written."""

import pytest

from scumble.errors import InvalidRequest, TemplateError
from scumble.events import ToolCall
from scumble.text import AnswerText, ChatTemplate

USER = {"role": "user", "content": "hello "}
ANSWER = {"role": "assistant", "content": "hi"}
PROMPT = "<bos><|turn>user\nhello<turn|>\n<|turn>model\n"
PARTS = [{"type": "text", "text": " a "}, {"type": "text", "text": "b"}]


def call(name="w", arguments=None, id=None) -> dict:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments or {}}}


def calls(*some, content=None, **more) -> dict:
    return {"role": "assistant", "content": content, "tool_calls": list(some), **more}


def response(content, id=None, **more) -> dict:
    return {"role": "tool", "content": content, "tool_call_id": id, **more}


def wrote(name="w", arguments="") -> str:
    return f"<|tool_call>call:{name}{{{arguments}}}<tool_call|>"


def said(value, name="w") -> str:
    return f'<|tool_response>response:{name}{{value:<|"|>{value}<|"|>}}<tool_response|>'


@pytest.fixture(scope="module")
def render(tokenizers):
    return ChatTemplate.built_in(tokenizers["byte-level"]).render


HISTORIES = {
    "user": ([USER], PROMPT),
    "system alone": ([{"role": "system", "content": " be brief "}],
                     "<bos><|turn>system\nbe brief<turn|>\n<|turn>model\n"),
    "developer": ([{"role": "developer", "content": "be brief"}, USER],
                  "<bos><|turn>system\nbe brief<turn|>\n<|turn>user\nhello<turn|>\n<|turn>model\n"),
    "parts": ([{"role": "system", "content": PARTS}, {"role": "user", "content": PARTS}],
              "<bos><|turn>system\na b <turn|>\n<|turn>user\nab<turn|>\n<|turn>model\n"),
    "several turns": ([USER, ANSWER, USER],
                      PROMPT + "hi<turn|>\n<|turn>user\nhello<turn|>\n<|turn>model\n"),
    "two answers in a row are one turn": ([USER, ANSWER, ANSWER], PROMPT + "hihi<turn|>\n<|turn>model\n"),
    "content null": ([USER, {"role": "assistant", "content": None}, USER],
                     PROMPT + "<turn|>\n<|turn>user\nhello<turn|>\n<|turn>model\n"),
    "earlier thinking is left out": ([USER, {**ANSWER, "content": "<|channel>thought\nhm<channel|> yes "}, USER],
                                     PROMPT + "yes<turn|>\n<|turn>user\nhello<turn|>\n<|turn>model\n"),
    "call": ([USER, calls(call())], PROMPT + wrote() + "<|tool_response>"),
    "call and response": ([USER, calls(call(id="c1")), response("sunny", "c1")], PROMPT + wrote() + said("sunny")),
    "arguments in the order of their names": (
        [USER, calls(call(arguments={"days": 2, "City": "Bern", "at": {"z": [1.5, True, None], "a": {}}}))],
        PROMPT + wrote("w", 'at:{a:{},z:[1.5,true,null]},City:<|"|>Bern<|"|>,days:2') + "<|tool_response>",
    ),
    "arguments as JSON, as OpenAI's clients send them": (
        [USER, calls(call(arguments='{"city": "Bern", "n": 1}'))],
        PROMPT + wrote("w", 'city:<|"|>Bern<|"|>,n:1') + "<|tool_response>",
    ),
    "arguments as other strings": ([USER, calls(call(arguments="{city:Bern}"), call(arguments="city"))],
                                   PROMPT + wrote("w", "city:Bern") + wrote("w", "city") + "<|tool_response>"),
    "parallel calls, answered in another order": (
        [USER, calls(call("w", id="c1"), call("t", id="c2")), response("12:00", "c2"), response("sunny", "c1")],
        PROMPT + wrote("w") + wrote("t") + said("12:00", "t") + said("sunny", "w"),
    ),
    "the answer follows in the same turn": (
        [USER, calls(call(id="c1")), response("sunny", "c1"), ANSWER, USER],
        PROMPT + wrote() + said("sunny") + "hi<turn|>\n<|turn>user\nhello<turn|>\n<|turn>model\n",
    ),
    "and so does another call": (
        [USER, calls(call(id="c1")), response("sunny", "c1"), calls(call("t", id="c2")), response("12:00", "c2")],
        PROMPT + wrote() + said("sunny") + wrote("t") + said("12:00", "t"),
    ),
    "a response and a new question": (
        [USER, calls(call(id="c1")), response("sunny", "c1"), USER],
        PROMPT + wrote() + said("sunny") + "<turn|>\n<|turn>user\nhello<turn|>\n<|turn>model\n",
    ),
    "responses as objects, parts and nothing": (
        [USER, calls(call(id="c")), response({"temp": 3, "sky": "blue"}, "c"), response(PARTS, "c"),
         response(None, "c")],
        PROMPT + wrote() + '<|tool_response>response:w{sky:<|"|>blue<|"|>,temp:3}<tool_response|>'
        + said(" a b") + "<|tool_response>response:w{value:null}<tool_response|>",
    ),
    "responses inside the model's message": (
        [USER, calls(call(), content="so", tool_responses=[{"name": "w", "response": {"x": 1}}]), USER],
        PROMPT + wrote() + "<|tool_response>response:w{x:1}<tool_response|>so<turn|>\n"
        "<|turn>user\nhello<turn|>\n<|turn>model\n",
    ),
    "thinking before a call, while it goes on": (
        [USER, calls(call(id="c1"), reasoning_content="I need w"), response("sunny", "c1")],
        PROMPT + "<|channel>thought\nI need w\n<channel|>" + wrote() + said("sunny"),
    ),
    "and left out when it is over": (
        [USER, calls(call(id="c1"), reasoning="I need w"), response("sunny", "c1"), ANSWER, USER],
        PROMPT + wrote() + said("sunny") + "hi<turn|>\n<|turn>user\nhello<turn|>\n<|turn>model\n",
    ),
    # From here on not as the release does: it writes the text behind the responses.
    "content before the call": (
        [USER, calls(call(id="c1"), content="Let me look."), response("sunny", "c1")],
        PROMPT + "Let me look." + wrote() + said("sunny"),
    ),
    # It names a response without an id after the last call, whatever its own name.
    "responses without ids": (
        [USER, calls(call("w"), call("t")), response("sunny"), response("12:00"), response("x", name="own")],
        PROMPT + wrote("w") + wrote("t") + said("sunny", "w") + said("12:00", "t") + said("x", "own"),
    ),
    "developer later on": ([USER, {"role": "developer", "content": "be brief"}],
                           "<bos><|turn>user\nhello<turn|>\n<|turn>system\nbe brief<turn|>\n<|turn>model\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", HISTORIES)
def test_history(render, name):
    messages, expected = HISTORIES[name]
    assert render(messages) == expected


def test_after_a_response_thinking_goes_on_in_the_open_channel(render):
    messages = [USER, calls(call(id="c1")), response("sunny", "c1")]
    assert render(messages, enable_thinking=True).endswith(said("sunny") + "<|channel>thought\n")
    assert render([USER], enable_thinking=True).endswith("<|turn>model\n")


def test_past_thinking_can_be_preserved_in_calls(render):
    messages = [USER, calls(call(id="c1"), reasoning="I need w"), response("sunny", "c1"), ANSWER, USER]
    assert "<|channel>thought\nI need w\n<channel|>" in render(messages, preserve_thinking=True)


def test_tools_are_declared_in_the_system_turn(render):
    parameters = {
        "type": "object",
        "properties": {
            "where": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
            "unit": {"type": "string", "enum": ["C", "F"], "description": "which one"},
            "days": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
            "maybe": {"type": "integer", "nullable": True},
        },
        "required": ["unit"],
    }
    tools = [
        {"type": "function", "function": {"name": "w", "description": "Weather", "parameters": parameters}},
        {"type": "function", "function": {"name": "t"}},
    ]
    declared = (
        '<|tool>declaration:w{description:<|"|>Weather<|"|>,parameters:{properties:{'
        'days:{items:{properties:{n:{type:<|"|>INTEGER<|"|>}},type:<|"|>OBJECT<|"|>},type:<|"|>ARRAY<|"|>},'
        'maybe:{nullable:true,type:<|"|>INTEGER<|"|>},'
        'unit:{description:<|"|>which one<|"|>,enum:[<|"|>C<|"|>,<|"|>F<|"|>],type:<|"|>STRING<|"|>},'
        'where:{properties:{lat:{type:<|"|>NUMBER<|"|>}},required:[<|"|>lat<|"|>],type:<|"|>OBJECT<|"|>}},'
        'required:[<|"|>unit<|"|>],type:<|"|>OBJECT<|"|>}}<tool|>'
        '<|tool>declaration:t{description:<|"|><|"|>}<tool|>'
    )
    assert render([USER], tools=tools) == f"<bos><|turn>system\n{declared}<turn|>\n" + PROMPT.removeprefix("<bos>")
    assert f"<|think|>\nbe brief{declared}<turn|>" in render(
        [{"role": "system", "content": "be brief"}, USER], tools=tools, enable_thinking=True
    )
    odd = {"name": "o", "parameters": {"properties": {"x": {"type": ["string", "null"]}, "y": {}}}}
    assert 'x:{type:[<|"|>STRING<|"|>,<|"|>NULL<|"|>]},y:{}}' in render([USER], tools=[odd])


def test_an_answers_calls_can_be_sent_back_as_they_are(render, tokenizer):
    answer = AnswerText(tokenizer)
    written = wrote("w", 'city:<|"|>New York, {NY}<|"|>,days:3') + wrote("t")
    answer.feed(tokenizer.encode(written, special=True))
    assert isinstance(answer.tool_calls[0], ToolCall)
    responses = [response("sunny", answer.tool_calls[0].id), response("12:00", answer.tool_calls[1].id)]
    rendered = render([USER, calls(*answer.tool_calls), *responses])
    assert rendered == PROMPT + written + said("sunny", "w") + said("12:00", "t")


def test_a_response_without_its_call_is_refused(render):
    for messages in ([response("sunny", "c1")], [USER, response("sunny")], [USER, ANSWER, response("sunny")]):
        with pytest.raises(TemplateError, match="must follow the assistant message"):
            render(messages)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (calls("w"), r"messages\[0\].tool_calls\[0\] must be an object"),
        (calls({"function": {"arguments": {}}}), "needs function"),
        ({**calls(), "tool_calls": "w"}, "must be a list of tool calls"),
        (calls(call(arguments=[1])), "must be an object or its JSON"),
        (calls(call(arguments="[1]")), "must be an object, not list"),
        (calls(call(arguments='{"a":' * 5000)), "too deep"),
        (calls(call(arguments={"a": float("nan")})), "JSON values"),
        ({"role": "user", "content": None}, "needs content"),
        ({"role": "tool", "content": b"x"}, "needs content"),
        ({"role": "user", "content": "x", "name": 3}, "name must be a str"),
        ({"role": ["user"], "content": "x"}, "needs a role"),
    ],
)
def test_malformed_messages(render, message, error):
    with pytest.raises(InvalidRequest, match=error):
        render([message])


@pytest.mark.parametrize("tools", ["w", {"name": "w"}, [1], [{}], [{"function": {"name": 1}}]])
def test_malformed_tools(render, tools):
    with pytest.raises(InvalidRequest, match="tools"):
        render([USER], tools=tools)


def test_depth_bombs_are_refused(render):
    bomb = current = {}
    for _ in range(5000):
        current["a"] = {}
        current = current["a"]
    for request in ({"option": bomb}, {"tools": [{"name": "w", "parameters": bomb}]}):
        with pytest.raises(InvalidRequest, match=r"JSON values: .*(deep|recursion)"):
            render([USER], **request)
