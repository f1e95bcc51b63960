"""Text at the edge: tokens, chat templates, streaming. Knows neither torch nor the model."""

from scumble.text.chat import ChatTemplate
from scumble.text.detokenize import StreamDetokenizer
from scumble.text.messages import Message
from scumble.text.stops import StopStrings
from scumble.text.thinking import (
    CHANNEL_CLOSE,
    CHANNEL_MARKERS,
    CHANNEL_OPEN,
    Channel,
    ChannelSplitter,
    split_thinking,
    split_thinking_ids,
)
from scumble.text.tokenizer import Tokenizer

__all__ = [
    "CHANNEL_CLOSE",
    "CHANNEL_MARKERS",
    "CHANNEL_OPEN",
    "Channel",
    "ChannelSplitter",
    "ChatTemplate",
    "Message",
    "StopStrings",
    "StreamDetokenizer",
    "Tokenizer",
    "split_thinking",
    "split_thinking_ids",
]
