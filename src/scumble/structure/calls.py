"""Tool calls as a language, in the form that text/tool_calls.py reads and the chat template writes:

    <|tool_call>call:weather{city:<|"|>New York<|"|>,days:3}<tool_call|>

The markers and the quotes are tokens of their own; `call:` and the tool's name are fixed text; the arguments are an
object of the tool's JSON Schema.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scumble.structure import tree
from scumble.structure.automaton import START, Automaton, Budget
from scumble.structure.build import compile_tree
from scumble.structure.document import Document
from scumble.structure.languages import JsonSchema, Language, as_tree
from scumble.structure.lower import Lowering, compile_documents, contradiction, document
from scumble.structure.shapes import Located
from scumble.structure.style import of_calls
from scumble.structure.tree import Node, StructureError, alt, optional, repeat, seq, text

_OBJECT = Located({"type": "object"}, "#")  # arguments are an object, whatever a schema says
_NO_ARGUMENTS = {"type": "object", "additionalProperties": False}


class Markers(NamedTuple):
    """Ids of `<|tool_call>`, `<tool_call|>` and `<|"|>`."""

    opening: int
    closing: int
    quote: int


@dataclass(frozen=True)
class Tool:
    """A function that may be called. parameters: the JSON Schema of its arguments, as JSON.

    strict: parameters that cannot be guaranteed are refused; otherwise the arguments are then any object.
    """

    name: str
    parameters: str
    strict: bool = True

    @staticmethod
    def of(name: str, parameters: Any = None, strict: bool = True) -> Tool:
        """parameters: a dict or JSON text; None: no arguments. Raises StructureError."""
        schema = JsonSchema.of(_NO_ARGUMENTS if parameters is None else parameters)
        return Tool(name, schema.source, strict)


@dataclass(frozen=True)
class ToolCalls:
    """A call of one of the tools; several: or more calls, one after another."""

    tools: tuple[Tool, ...]
    markers: Markers
    several: bool = True

    @property
    def key(self) -> str:
        tools = [(tool.name, tool.parameters, tool.strict) for tool in self.tools]
        return "calls " + json.dumps([tools, self.markers, self.several])

    def automaton(self, budget: Budget) -> Automaton:
        docs = [self._document(tool, budget) for tool in self.tools]
        machine = compile_documents(docs, self._around, budget, (_OBJECT,))
        opened = int(machine.step[START, machine.column[256 + machine.symbols.index(self.markers.opening)]])
        for tool, doc in zip(self.tools, docs, strict=True):
            if not machine.walk(_head(tool).data + b"{", opened):
                raise StructureError(f"tool {tool.name}: {contradiction(doc)}")
        return machine

    def _document(self, tool: Tool, budget: Budget) -> Document:
        """The tool's parameters, once it is known that they can be said."""
        style = of_calls(self.markers.quote)
        doc = document(json.loads(tool.parameters), style)
        try:
            Lowering(doc, 1, budget).node((Located(doc.root, "#"), _OBJECT))
        except StructureError as error:
            if tool.strict:
                raise type(error)(f"tool {tool.name}: {error}") from None
            return document({}, style)
        return doc

    def _around(self, arguments: Sequence[Node]) -> Node:
        opening, closing, _ = map(tree.Symbol, self.markers)
        tools = [seq(_head(tool), one) for tool, one in zip(self.tools, arguments, strict=True)]
        call = seq(opening, alt(*tools), closing)
        return repeat(call, 1) if self.several else call

    def parse(self, text: str) -> None:
        """The text beside calls means nothing; the calls themselves are read from the tokens (text/answer.py)."""
        return None


@dataclass(frozen=True)
class TextOrCalls:
    """Any text, then calls or none; or, with a language for the text, such a text or calls."""

    calls: ToolCalls
    language: Language | None = None

    @property
    def key(self) -> str:
        return f"text {'' if self.language is None else self.language.key} or {self.calls.key}"

    def automaton(self, budget: Budget) -> Automaton:
        calls = as_tree(self.calls.automaton(budget))
        if self.language is None:
            return compile_tree(seq(repeat(tree.ANY_CHAR), optional(calls)), budget)
        return compile_tree(alt(as_tree(self.language.automaton(budget)), calls), budget)

    def parse(self, text: str) -> Any:
        return text if self.language is None else self.language.parse(text)


def _head(tool: Tool) -> tree.Text:
    return text(f"call:{tool.name}")
