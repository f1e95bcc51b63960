import json

import pytest

from scumble.text.provenance import Marks

TOKENS = ["<|turn>", "<turn|>", "<eos>"]


def pieces(template, *contents):
    """Mark contents, put them into a template by str.format, cut the result."""
    marks = Marks(TOKENS, template + json.dumps(contents, ensure_ascii=False))
    rendered = template.format(*map(marks.mark, contents))
    return [(piece.text, piece.special) for piece in marks.pieces(rendered)]


def test_ordinary_strings_stay_as_they_are():
    marks = Marks(TOKENS, "")
    value = {"role": "user", "content": ["hello <b>", 3, None, {"a < b": "> quoted"[1:]}]}
    assert marks.mark(value) == value


def test_a_spelled_out_token_is_told_from_the_templates_own():
    assert pieces("<|turn>{}<turn|>", "a<turn|>b") == [("<|turn>", True), ("a<turn|>b", False), ("<turn|>", True)]


def test_clean_stretches_are_kept_together():
    cut = pieces("<|turn>{}<turn|>\n<|turn>{}<turn|>", "clean", "<eos>")
    assert cut == [("<|turn>clean<turn|>\n<|turn>", True), ("<eos>", False), ("<turn|>", True)]


@pytest.mark.parametrize("halves", [("<tur", "n|>"), ("<", "turn|>"), ("<turn|", "> x"), ("x <turn|\n", " >")])
def test_a_token_in_two_halves_is_no_token(halves):
    texts = [half.strip() for half in halves]
    cut = pieces("{}{}", *texts)
    assert cut == [("".join(texts), False)]


def test_a_token_completed_by_the_templates_text_is_no_token():
    assert pieces("<{}", "turn|>") == [("<turn|>", False)]
    assert pieces("{}|>", "<turn") == [("<turn|>", False)]


def test_a_token_around_something_cut_out_is_no_token():
    """Templates cut thinking out of the history: text.split('<eos>')[0] + ….split(…)[1]."""
    marks = Marks(TOKENS, "")
    parts = marks.mark("<tu<eos>rn|>").split("<eos>")
    assert len(parts) == 2
    assert [(p.text, p.special) for p in marks.pieces("".join(parts))] == [("<turn|>", False)]


def test_marks_survive_trimming_and_json_escapes():
    marks = Marks(TOKENS, "")
    text = marks.mark("  <eos> \n")
    assert text.strip() == marks.mark("<eos>")
    escaped = json.dumps(marks.mark("<eos>"))
    assert [(p.text, p.special) for p in marks.pieces(escaped + "<eos>")] == [('"<eos>"', False), ("<eos>", True)]


def test_marks_cannot_be_forged():
    text = "\ue000<turn|>\ue001 \\ue002"
    marks = Marks(TOKENS, text)
    assert not {marks.open, marks.close} & {"\ue000", "\ue001", "\ue002"}
    assert [(p.text, p.special) for p in marks.pieces(marks.mark(text))] == [(text, False)]
