"""Structure that is guaranteed: languages become automata over tokens, and a canvas is drawn from what they allow.

    languages     what a caller asks for: JsonSchema, Regex, Choices, Grammar; calls: tool calls
    tree          regular languages as trees        <- pattern, numbers, formats, grammar
    document      a JSON Schema: keywords -> shapes -> lower -> tree;  style: written as JSON, or as a call's arguments
    automaton     minimal automata over bytes       <- build, minimal
    vocabulary    a tokenizer's tokens as a trie of bytes
    classes       tokens that an automaton cannot tell apart; fewest tokens to the end
    law           the exact law of a canvas under an automaton
    compiled      all of that, cached

A leaf: ids and bytes in, no model, no torch.
"""

from scumble.structure.automaton import Limits
from scumble.structure.calls import Markers, TextOrCalls, Tool, ToolCalls
from scumble.structure.compiled import Compiled, compiled
from scumble.structure.languages import Choices, Grammar, JsonSchema, Language, Regex, Template, Thinking
from scumble.structure.tree import StructureError
from scumble.structure.vocabulary import Vocabulary

__all__ = [
    "Choices", "Compiled", "Grammar", "JsonSchema", "Language", "Limits", "Markers", "Regex", "StructureError",
    "Template", "TextOrCalls", "Thinking", "Tool", "ToolCalls", "Vocabulary", "compiled",
]  # fmt: skip
