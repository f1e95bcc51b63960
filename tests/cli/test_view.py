"""How drafts become pieces, rows and a frame; no model involved."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from scumble.cli.canvas_view import STEADY, CanvasView
from scumble.cli.layout import PALETTE, Piece, rows_of, text_of
from scumble.cli.region import Region
from scumble.cli.screen import LiveScreen, Progress, footer
from scumble.cli.terminal import visible
from scumble.events import Draft
from scumble.text import Tokenizer

from .conftest import SPECIAL, train_tokenizer

EOS = SPECIAL.index("<eos>")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(SPECIAL).save(str(folder / "tokenizer.json"))
    return Tokenizer.from_folder(folder)


def drafts(*passes: tuple[list[int], list[bool]], canvas: int = 0) -> list[Draft]:
    return [Draft(tuple(ids), "", canvas, number, tuple(accepted)) for number, (ids, accepted) in enumerate(passes)]


def looks(view: CanvasView, draft: Draft) -> list[str]:
    return [piece.look for piece in view.take(draft).pieces]


def test_looks_follow_acceptance_and_change() -> None:
    view = CanvasView(None, (), 10)
    first, second, third = drafts(
        ([5, 6, 7, 8], [True, False, False, False]),
        ([5, 6, 9, 8], [True, True, True, False]),
        ([5, 6, 9, 3], [True, True, True, False]),
    )
    assert looks(view, first) == ["fresh", "noise", "noise", "noise"]
    assert looks(view, second) == ["settled", "settled", "fresh", "leaning"]
    assert looks(view, third) == ["settled", "settled", "settled", "noise"]


def test_a_token_that_holds_long_enough_looks_settled() -> None:
    view = CanvasView(None, (), 10)
    seen = [looks(view, draft)[0] for draft in drafts(*[([5], [False])] * (STEADY + 1))]
    assert seen == ["noise", *["leaning"] * (STEADY - 1), "settled"]


def test_a_new_canvas_starts_unsettled() -> None:
    view = CanvasView(None, (), 10)
    view.take(drafts(([5], [True]))[0])
    assert looks(view, drafts(([5], [False]), canvas=1)[0]) == ["noise"]


def test_nothing_is_shown_behind_the_end_or_the_room(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("def"), EOS, *tokenizer.encode("mean")]
    accepted = [True] * len(ids)
    view = CanvasView(tokenizer, {EOS}, 100)
    assert "".join(piece.text for piece in view.take(drafts((ids, accepted))[0]).pieces) == "def ∎"
    view = CanvasView(tokenizer, (), 100)
    view.commit(99)
    assert len(view.take(drafts((ids, accepted))[0]).pieces) == 1


def test_a_character_of_several_tokens_is_shown_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("é世")
    assert len(ids) == 5
    view = CanvasView(tokenizer, (), 100)
    assert [p.text for p in view.take(drafts((ids, [True] * 5))[0]).pieces] == ["é", "世"]


def test_guessed_line_breaks_do_not_break_lines(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\nb")
    view = CanvasView(tokenizer, (), 100)
    first, second = drafts((ids, [False] * len(ids)), (ids, [True] * len(ids)))
    assert "".join(p.text for p in view.take(first).pieces) == "a↵b"
    assert "".join(p.text for p in view.take(second).pieces) == "a\nb"


def test_no_control_character_reaches_a_terminal() -> None:
    text = "".join(map(chr, [*range(0x20), 0x7F, *range(0x80, 0xA0), 0x202E, 0x2066]))
    shown = visible(text)
    assert [c for c in shown if ord(c) < 0x20] == ["\t", "\n"]
    assert not any(0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066" for c in shown)
    assert visible("\x1b[31m") == "␛[31m"


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("abcdef", 4, ["abcd", "ef"]),
        ("ab\n\ncd", 4, ["ab", "", "cd"]),
        ("世界世界", 5, ["世界", "世界"]),
        ("a\tb", 20, ["a       b"]),
        ("abcd\n", 4, ["abcd", ""]),
        ("e\u0301e\u0301", 1, ["e\u0301", "e\u0301"]),
    ],
)
def test_rows_break_where_a_terminal_does(text: str, width: int, expected: list[str]) -> None:
    assert ["".join(p.text for p in row) for row in rows_of([Piece(text, "settled")], width)] == expected


def test_rows_keep_the_look_of_every_piece() -> None:
    rows = rows_of([Piece("ab", "settled"), Piece("cd", "noise"), Piece("e", "noise")], 3)
    assert rows == [[("ab", "settled"), ("c", "noise")], [("de", "noise")]]
    text = text_of(rows[0], PALETTE)
    assert [(span.start, span.end, span.style) for span in text.spans] == [(2, 3, PALETTE["noise"])]


def terminal(width: int = 40, height: int = 10) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, highlight=False, _environ={})


def output(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_region_goes_back_over_what_it_drew() -> None:
    console = terminal(width=10)
    region = Region(console)
    region.draw([text_of([Piece("x" * 10, "settled")], PALETTE), text_of([Piece("y", "settled")], PALETTE)])
    console.width = 5  # the terminal breaks the first row in two
    region.erase()
    assert output(console).endswith("\r\x1b[2A\x1b[J\x1b[?25h")


def test_the_drawing_never_exceeds_the_screen(tokenizer: Tokenizer) -> None:
    console = terminal(width=30, height=8)
    view = CanvasView(tokenizer, (), 1000)
    screen = LiveScreen(console, view, "prompt\n" * 30, 48, 1000)
    ids = tokenizer.encode("line\n" * 40)
    for draft in drafts((ids, [True] * len(ids)), (ids, [True] * len(ids))):
        before = len(output(console))
        screen.draft(draft)
        assert output(console)[before:].count("\r\n") < 8
    screen.close()


def test_the_drawing_shows_prompt_canvas_and_footer(tokenizer: Tokenizer) -> None:
    console = terminal(width=100)
    screen = LiveScreen(console, CanvasView(tokenizer, (), 10), "def ", 48, 10)
    ids = tokenizer.encode("mean")
    screen.draft(drafts((ids, [False] * len(ids)))[0])
    drawn = output(console)
    assert "\x1b[2mdef \x1b[0m" in drawn
    assert "mean" in drawn
    assert "pass  1/48" in drawn
    assert "0% settled" in drawn


@pytest.mark.parametrize("width", [20, 40, 56, 80, 200])
def test_the_footer_fits(width: int) -> None:
    view = CanvasView(None, (), 10).take(drafts(([5, 6], [True, False]))[0])
    for candidates in (1, 64):
        line = footer(Progress(view, 48, 123456, 200000, 99.0, candidates), 17, width)
        assert line.cell_len <= width - 3
        assert ("1 of 64" in line.plain) == (candidates == 64 and width >= 40)
        whole = footer(Progress(view, 48, 123456, 200000, 99.0, candidates), 17, 400).plain.strip().split(" · ")
        for part in line.plain.strip().split(" · ")[1:]:  # none is cut in the middle of a number
            assert any(part.split()[-2:] == one.split()[-2:] for one in whole)


def test_committed_text_goes_to_stdout_once(capsys: pytest.CaptureFixture[str], tokenizer: Tokenizer) -> None:
    screen = LiveScreen(terminal(), CanvasView(tokenizer, (), 10), "p", 48, 10)
    screen.committed("one\ntw", 3)
    screen.committed("o", 1)
    screen.close()
    assert capsys.readouterr().out == "one\ntwo\n"
