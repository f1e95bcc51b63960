"""What the package exports, and that it stays light."""

import subprocess
import sys

import scumble.text


def test_exports():
    assert set(scumble.text.__all__) == {
        *("AnswerText", "ChatTemplate", "Message", "StopStrings", "StreamDetokenizer", "Tokenizer", "parse_calls"),
    }
    assert all(hasattr(scumble.text, name) for name in scumble.text.__all__)


def test_text_knows_neither_torch_nor_jinja():
    code = "import scumble.text, sys; sys.exit('torch' in sys.modules or 'jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
