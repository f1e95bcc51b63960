"""The control tokens of the model family's chat format, by their spelling in the vocabulary."""

from __future__ import annotations

TURN_OPEN, TURN_CLOSE = "<|turn>", "<turn|>"
CHANNEL_OPEN, CHANNEL_CLOSE = "<|channel>", "<channel|>"
CALL_OPEN, CALL_CLOSE = "<|tool_call>", "<tool_call|>"
RESPONSE_OPEN, RESPONSE_CLOSE = "<|tool_response>", "<tool_response|>"
TOOL_OPEN, TOOL_CLOSE = "<|tool>", "<tool|>"
QUOTE = '<|"|>'  # stands on both sides of a string among a call's arguments
THINK = "<|think|>"  # on top of the system turn: asks for thinking

# Special wherever a vocabulary has them as one token, whatever the tokenizer's files mark as special: a user's text
# must never become one of them, and none is ever text of an answer.
CONTROL_TOKENS = (
    *(TURN_OPEN, TURN_CLOSE, CHANNEL_OPEN, CHANNEL_CLOSE, CALL_OPEN, CALL_CLOSE, RESPONSE_OPEN, RESPONSE_CLOSE),
    *(TOOL_OPEN, TOOL_CLOSE, QUOTE, THINK, "<pad>", "<bos>", "<eos>", "<mask>"),
    *("<|image>", "<image|>", "<|image|>", "<|audio>", "<audio|>", "<|audio|>", "<|video|>"),
)
