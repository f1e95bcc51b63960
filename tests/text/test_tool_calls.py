"""Reading tool calls. In the tests' notation ¦ is the quote token: city:¦Bern¦."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scumble.text.tool_calls import MAX_DEPTH, QUOTE, MalformedCall, parse_calls, spelled


def items(text: str) -> list:
    """¦ becomes the quote token; everything else is text."""
    pieces = text.split("¦")
    return [item for piece in pieces for item in (piece, QUOTE)][:-1]


def arguments(text: str) -> dict:
    (call,) = parse_calls(items(f"call:f{{{text}}}"))
    assert call.name == "f"
    return call.arguments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("city:¦Bern¦", {"city": "Bern"}),
        ("city:¦New York, {NY}¦,days:3", {"city": "New York, {NY}", "days": 3}),
        ("a:true,b:false,c:null,d:-1.5e3,e:0", {"a": True, "b": False, "c": None, "d": -1500.0, "e": 0}),
        ("a:[],b:{},c:[[1],{}]", {"a": [], "b": {}, "c": [[1], {}]}),
        ("where:{lat:40.7,names:[¦a¦,¦]b}¦]},n:1", {"where": {"lat": 40.7, "names": ["a", "]b}"]}, "n": 1}),
        ("code:¦if x:\n\tprint(\"{}\", 'y')\n¦", {"code": "if x:\n\tprint(\"{}\", 'y')\n"}),
        ("empty:¦¦,space:¦ ¦", {"empty": "", "space": " "}),
        ('spelled:¦he wrote <|"|>¦', {"spelled": 'he wrote <|"|>'}),
        ("¦quoted key¦:1,{}".replace(",{}", ""), {"quoted key": 1}),
        ("ключ:¦значение¦", {"ключ": "значение"}),
        ("big:123456789012345678901234567890", {"big": 123456789012345678901234567890}),
    ],
)
def test_the_form_of_the_model_family(text, expected):
    assert arguments(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ids:[\"ds_1\",'ds_2']", {"ids": ["ds_1", "ds_2"]}),  # vllm-project/vllm issue 51284
        ('opts:{"mode": "fast"}', {"opts": {"mode": "fast"}}),
        ('text:"a \\"b\\" \\n c"', {"text": 'a "b" \n c'}),
        ("text:'it\\'s'", {"text": "it's"}),
        ("query:weather in Tokyo¦,n:5", {"query": "weather in Tokyo", "n": 5}),  # sgl-project/sglang pull request 39240
        ("all:[Tokyo¦,¦Bern¦]", {"all": ["Tokyo", "Bern"]}),
        (" a : 1 ,\n b : [ 1 , 2 ] , ", {"a": 1, "b": [1, 2]}),
        ("a:True,b:None,unit:celsius,day:2026-07-01,at:10:30", {
            "a": True, "b": None, "unit": "celsius", "day": "2026-07-01", "at": "10:30",
        }),
        ("agent:007,half:108.", {"agent": "007", "half": 108.0}),
        ("n:1,n:2", {"n": 2}),
    ],
)  # fmt: skip
def test_slips_that_leave_no_doubt_are_read(text, expected):
    assert arguments(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "call:", "call:f", "call:{}", "weather{}", "call:f{", "call:f{a", "call:f{a:", "call:f{a:1", "call:f{a:1,",
        "call:f{a:¦Bern", "call:f{a:¦Bern}", "call:f{a:[1}", "call:f{a:{b:1}", "call:f{:1}", "call:f{a:}",
        "call:f{a b}", "call:f{a:,b:1}",
        "call:f{a:¦x¦¦y¦}", "call:f{a:¦x¦b:1}", "call:f{a:¦Bern,unit:¦C¦}", "call:f{q:Paris, France¦,n:1}",
        "call:f{a:\"Bern}", "call:f{a:it's}", "call:f{}rest", "call:f(a=1)", '{"name": "f", "arguments": {}}',
        "call:f{a:1e999}", f"call:f{{a:{'9' * 5000}}}", 'call:f{a:"\\ud800"}', "call:f{a:1}}", "¦call:f{}¦",
    ],
)  # fmt: skip
def test_what_is_in_doubt_is_refused(text):
    with pytest.raises(MalformedCall):
        parse_calls(items(text))


def test_depth_has_a_limit():
    deep = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert "a" in arguments(f"a:{deep}")
    for bomb in ("[", "{a:"):
        with pytest.raises(MalformedCall, match="64 deep"):
            parse_calls([f"call:f{{a:{bomb * 100_000}"])


def test_several_calls_between_one_pair_of_markers():
    calls = parse_calls(items("call:get-weather{city:¦Bern¦}call:time.now{} , call:f{}"))
    assert calls == (("get-weather", {"city": "Bern"}), ("time.now", {}), ("f", {}))


names = st.text(string.ascii_letters + string.digits + "_-", min_size=1)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


def written(value) -> list:
    """A value as the chat template writes it."""
    if isinstance(value, str):
        return [QUOTE, value, QUOTE]
    if isinstance(value, dict):
        return ["{", *joined([[key, ":", *written(item)] for key, item in value.items()]), "}"]
    if isinstance(value, list):
        return ["[", *joined([written(item) for item in value]), "]"]
    return [json.dumps(value)]


def joined(parts: list) -> list:
    return [item for number, part in enumerate(parts) for item in ([",", *part] if number else part)]


@given(st.dictionaries(names, values, max_size=4))
def test_whatever_the_template_writes_is_read_back(given_arguments):
    (call,) = parse_calls(["call:f", *written(given_arguments)])
    assert call.arguments == given_arguments


signs = ["call:f{", "}", "[", "]", ",", ":", "a", '"', "'", "1", " ", "\\", QUOTE]


@given(st.lists(st.sampled_from(signs), max_size=20))
def test_nothing_else_than_a_refusal_comes_of_rubbish(rubbish):
    try:
        calls = parse_calls(["call:f{", *rubbish])
    except MalformedCall:
        return
    json.dumps([call.arguments for call in calls])


def test_spelled_for_people():
    assert spelled(items("call:f{a:¦x¦}")) == 'call:f{a:"x"}'
