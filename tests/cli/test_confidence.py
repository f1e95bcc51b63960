"""Colours of tokens."""

from scumble.cli.confidence import coloured, style_of


def test_colours_go_by_log_probability() -> None:
    assert [style_of(value) for value in (None, 0.0, -2.9, -3.1, -5.9, -6.1)] == [
        "", "green", "green", "yellow", "yellow", "red"
    ]  # fmt: skip


def test_tokens_keep_their_text_and_escape_nothing_to_the_terminal() -> None:
    text = coloured([("a", None), (" b", -1.0), ("\x1b[2J", -9.0)])
    assert text.plain.startswith("a b")
    assert "\x1b" not in text.plain
