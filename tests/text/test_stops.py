import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scumble.errors import InvalidRequest
from scumble.text import StopStrings

alphabet = st.text("abc", max_size=25)
pieces = st.lists(st.text("abc", max_size=4), max_size=12)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


def run(stops, parts):
    stream = StopStrings(stops)
    shown = ""
    for part in parts:
        text, stopped = stream.feed(part)
        shown += text
        if stopped:
            break
    return shown + stream.finish(), stream.matched is not None


def plainly(stops, text):
    """The definition, character by character."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(stops=stop_lists, parts=pieces)
@example(stops=["abcd", "c"], parts=["ab", "cd"])
def test_any_cut_into_pieces_gives_the_same(stops, parts):
    assert run(stops, parts) == plainly(stops, "".join(parts))


def test_what_may_become_a_stop_string_is_held_back():
    stream = StopStrings(["\n\nUser:"])
    assert stream.feed("Hello.\n") == ("Hello.", False)
    assert stream.feed("\nUs") == ("", False)
    assert stream.feed("ual.") == ("\n\nUsual.", False)
    assert stream.feed("\n\nUser: hi") == ("", True)
    assert stream.matched == "\n\nUser:"
    assert stream.feed("more") == ("", True)
    assert stream.finish() == ""


def test_held_text_comes_out_at_the_end():
    stream = StopStrings(["END"])
    assert stream.feed("the EN") == ("the ", False)
    assert stream.finish() == "EN"


def test_first_complete_wins_then_the_longest():
    assert run(["abcd", "c"], ["abcd"]) == ("ab", True)
    assert run(["\nUser:", "User:"], ["hi\nUser:"]) == ("hi", True)


@pytest.mark.parametrize("stops", ["END", [""], [None], [3]])
def test_refused(stops):
    with pytest.raises(InvalidRequest):
        StopStrings(stops)
