"""Text at the edge: tokens, chat templates, answers as they stream. Knows neither torch nor the model."""

from scumble.text.answer import AnswerText
from scumble.text.chat import ChatTemplate
from scumble.text.detokenize import StreamDetokenizer
from scumble.text.messages import Message
from scumble.text.stops import StopStrings
from scumble.text.tokenizer import Tokenizer
from scumble.text.tool_calls import parse_calls

__all__ = [
    "AnswerText",
    "ChatTemplate",
    "Message",
    "StopStrings",
    "StreamDetokenizer",
    "Tokenizer",
    "parse_calls",
]
