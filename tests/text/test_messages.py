import pytest

from scumble.errors import InvalidRequest
from scumble.text.messages import check_messages


def test_accepted():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "Ada"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "anything the template knows", "content": ""},
    ]
    assert check_messages(messages) == messages


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "empty"),
        ("hello", "list"),
        ({"role": "user", "content": "x"}, "list"),
        (["hello"], r"messages\[0\] must be an object"),
        ([{"role": "user", "content": "x"}, {"content": "x"}], r"messages\[1\] needs a role"),
        ([{"role": "user"}], "needs content"),
        ([{"role": "user", "content": 3}], "got int"),
        ([{"role": "user", "content": ["x"]}], r"content\[0\] must be"),
        ([{"role": "user", "content": [{"type": "text"}]}], "text must be a str"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "text-only model was loaded"),
    ],
)
def test_refused(messages, message):
    with pytest.raises(InvalidRequest, match=message):
        check_messages(messages)
