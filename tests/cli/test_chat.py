"""`scumble chat`, piped, and what a conversation remembers."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from scumble import LLM, GenerationConfig, InvalidRequest, ScumbleError
from scumble.cli.chat import command
from scumble.cli.conversation import Conversation
from scumble.cli.main import main


def talk_to(llm: LLM, **options: object) -> Conversation:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    config = GenerationConfig(max_new_tokens=8, max_denoising_steps=2, ignore_eos=True)
    return Conversation(llm, config, console, False, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM.load(folder)


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes, *arguments: object) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return main(["chat", *map(str, arguments)])


def test_piped_prints_answers_only(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, llm: LLM, tmp_path: Path
) -> None:
    save = tmp_path / "talk.json"
    code = piped(
        monkeypatch, b"hi\n\nyou\n/quit\nnot read\n", "--model", folder, "-n", 8, "--save", save, "--system", "Be kind."
    )
    out, err = capfd.readouterr()
    assert (code, err) == (0, "")
    messages = json.loads(save.read_text())["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [m["content"] for m in messages if m["role"] == "user"] == ["hi", "you"]
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    assert out == "".join(f"{answer}\n" for answer in answers)
    first = llm.chat(messages[:2], GenerationConfig(max_new_tokens=8)).text
    assert answers[0] == first


def test_piped_bad_commands_are_said_and_the_conversation_goes_on(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    assert piped(monkeypatch, b"/seed x\n/nonsense\nhi\n", "--model", folder, "-n", 8) == 0
    out, err = capfd.readouterr()
    assert out
    assert err == (
        "scumble: error: stdin, line 1: /seed takes a whole number, found 'x'\n"
        "scumble: error: no command /nonsense; /help lists them\n"
    )


def test_a_model_without_template_points_to_generate(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, no_chat: Path
) -> None:
    assert piped(monkeypatch, b"hi\n", "--model", no_chat) == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "scumble generate" in err


def test_a_model_that_never_learnt_to_chat_is_announced_before_the_first_turn(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded model has the markers of turns, and never learnt what they are for."""
    assert piped(monkeypatch, b"/quit\n") == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "the embedded model was trained on plain text" in err
    assert "scumble generate" in err


def test_weights_are_not_read_where_no_chat_can_come_of_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, no_chat: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((no_chat / "tokenizer.json").read_bytes())
    assert piped(monkeypatch, b"hi\n", "--model", tmp_path) == 1
    assert "needs <|turn> and <turn|> as tokens" in capfd.readouterr().err


def test_commands(llm: LLM, tmp_path: Path) -> None:
    talk = talk_to(llm)
    assert talk.say("hi")
    assert len(talk.messages) == 2
    assert command(talk, "/seed 9")
    assert talk.config.seed == 9
    assert command(talk, f"/save {tmp_path / 'a.json'}")
    assert json.loads((tmp_path / "a.json").read_text())["config"]["seed"] == 9
    assert command(talk, "/reset")
    assert talk.messages == []
    assert command(talk, "/system Be brief.")
    assert talk.all_messages() == [{"role": "system", "content": "Be brief."}]
    assert command(talk, "/help")
    assert command(talk, "/nonsense")
    assert not command(talk, "/quit")
    said = talk.console.file.getvalue()  # type: ignore[attr-defined]
    assert "/reset" in said
    assert "no command /nonsense" in said


def test_bad_commands(llm: LLM, tmp_path: Path) -> None:
    talk = talk_to(llm)
    for line in ("/seed many", "/seed -1", "/save"):
        with pytest.raises(InvalidRequest):
            command(talk, line)
    with pytest.raises(ScumbleError, match="cannot be written"):
        command(talk, f"/save {tmp_path / 'no' / 'such' / 'folder.json'}")


def test_ctrl_c_keeps_what_was_committed_and_drops_what_got_nothing(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = llm.stream_request

    def interrupted_after(events_seen: int):
        def stream(*arguments: object):
            for number, event in enumerate(whole(*arguments)):  # type: ignore[arg-type]
                if number == events_seen:
                    raise KeyboardInterrupt
                yield event

        return stream

    talk = talk_to(llm)
    monkeypatch.setattr(llm, "stream_request", interrupted_after(1))
    assert not talk.say("hi")
    assert talk.messages == []
    monkeypatch.setattr(llm, "stream_request", interrupted_after(3))  # two passes and a commit
    assert not talk.say("hi")
    assert [m["role"] for m in talk.messages] == ["user", "assistant"]
    assert talk.messages[1]["content"] != ""
