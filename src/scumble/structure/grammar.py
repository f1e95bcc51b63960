"""Grammars in EBNF, with rules nested in each other up to a bounded depth, to trees.

    root   ::= "sum(" number ("," number)* ")"
    number ::= [0-9]+ | "-" number            # a rule may use itself; a depth is stated, by default 4

Rules are `name ::= …`; names hold letters, digits, _ and -. Parts: "literal" or 'literal' (with \\n, \\t, \\", \\\\ and
\\uXXXX), [classes] as in regular expressions, . for any character but a newline, name, ( ), |, and ? * + {n} {n,} {n,m}
behind a part. # begins a comment. The first rule, or the one that is called root, is where a text begins.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from scumble.errors import shown
from scumble.structure.automaton import Automaton, Budget, TooLarge
from scumble.structure.build import compile_tree
from scumble.structure.pattern import parse_pattern
from scumble.structure.tree import EMPTY, Node, StructureError, alt, repeat, seq, text

DEPTH = 4  # how often a rule may stand inside itself; less where the result would be too large
LONGEST_GRAMMAR = 100_000  # characters
MOST_PARTS = 20_000

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<literal>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<bracket>\[(?:[^\]\\\n]|\\.)+\])
    |(?P<define>::=)
    |(?P<times>[?*+]|\{\d+(?:,\d*)?\})
    |(?P<name>[A-Za-z_][A-Za-z0-9_-]*)
    |(?P<mark>[|().;])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "b": "\b", "0": "\0"}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


Branches = list[list[tuple["_Token | Branches", str]]]  # alternatives of (part, what stands behind it)


def compile_grammar(source: str, budget: Budget, depth: int = DEPTH) -> Automaton:
    """The texts of a grammar. Raises StructureError: damaged, empty at this depth, too large."""
    rules = _Reader(source).rules()
    for allowed in range(depth, 0, -1):
        expansion = _Expansion(rules, allowed)
        try:
            machine = compile_tree(expansion.rule("root" if "root" in rules else next(iter(rules))), budget)
        except TooLarge:
            if allowed == 1 or not expansion.cut:
                raise
            continue
        if machine.is_empty:
            raise StructureError("the grammar has no text, or none within the depth to which its rules may nest")
        return machine
    raise AssertionError("the smallest depth returns or raises")


class _Reader:
    """Text to rules: name -> alternatives."""

    def __init__(self, source: str) -> None:
        if len(source) > LONGEST_GRAMMAR:
            raise StructureError(f"the grammar has {len(source)} characters; the limit is {LONGEST_GRAMMAR}")
        self.source = source
        self.tokens: list[_Token] = []
        at = 0
        while at < len(source):
            match = _TOKEN.match(source, at)
            if match is None:
                self.fail("cannot be read", at)
            if match.lastgroup != "space":
                self.tokens.append(_Token(str(match.lastgroup), match.group(), at))
            at = match.end()
        self.next = 0

    def fail(self, why: str, at: int):
        line = self.source.count("\n", 0, at) + 1
        raise StructureError(f"the grammar, line {line}: {shown(self.source[at : at + 30])} {why}")

    def rules(self) -> dict[str, Branches]:
        found: dict[str, Branches] = {}
        while self.next < len(self.tokens):
            name = self.tokens[self.next]
            if not self._defines(self.next):
                self.fail("is no rule; a rule is written name ::= …", name.at)
            if name.text in found:
                self.fail("is defined twice", name.at)
            self.next += 2
            found[name.text] = self.branches()
            if self.next < len(self.tokens) and self.tokens[self.next].text == ";":
                self.next += 1
        if not found:
            raise StructureError("the grammar is empty; write at least one rule, name ::= …")
        return found

    def _defines(self, at: int) -> bool:
        two = self.tokens[at : at + 2]
        return len(two) == 2 and two[0].kind == "name" and two[1].kind == "define"

    def branches(self) -> Branches:
        found: Branches = [[]]
        while self.next < len(self.tokens) and not self._defines(self.next):
            token = self.tokens[self.next]
            if token.text in (")", ";") and token.kind == "mark":
                break
            self.next += 1
            if token.kind == "mark" and token.text == "|":
                found.append([])
                continue
            part: _Token | Branches = token
            if token.kind == "mark" and token.text == "(":
                part = self.branches()
                if self.next >= len(self.tokens) or self.tokens[self.next].text != ")":
                    self.fail("has no )", token.at)
                self.next += 1
            elif token.kind in ("times", "define"):
                self.fail("stands where a part is expected", token.at)
            times = ""
            if self.next < len(self.tokens) and self.tokens[self.next].kind == "times":
                times = self.tokens[self.next].text
                self.next += 1
            found[-1].append((part, times))
        return found


class _Expansion:
    """Rules written out, each inside itself up to `depth` times; deeper uses have no text."""

    def __init__(self, rules: dict[str, Branches], depth: int) -> None:
        self.rules, self.depth = rules, depth
        self.open: Counter[str] = Counter()
        self.cut = False
        self.parts = 0

    def rule(self, name: str) -> Node:
        if name not in self.rules:
            raise StructureError(f"the grammar uses the rule {name}, which it does not define")
        if self.open[name] >= self.depth:
            self.cut = True
            return EMPTY
        self.open[name] += 1
        found = self.branches(self.rules[name])
        self.open[name] -= 1
        return found

    def branches(self, branches: Branches) -> Node:
        return alt(*(seq(*(self.part(part, times) for part, times in branch)) for branch in branches))

    def part(self, part: _Token | Branches, times: str) -> Node:
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise TooLarge(f"the grammar spreads out to more than {MOST_PARTS} parts; make it less nested")
        if isinstance(part, list):
            node = self.branches(part)
        elif part.kind == "name":
            node = self.rule(part.text)
        elif part.kind == "literal":
            node = text(_ESCAPE.sub(_unescaped, part.text[1:-1]))
        else:
            node = parse_pattern(part.text, what="the grammar's class")
        if not times:
            return node
        simple = {"?": (0, 1), "*": (0, None), "+": (1, None)}
        if times in simple:
            return repeat(node, *simple[times])
        low, comma, high = times[1:-1].partition(",")
        if max(int(low), int(high or 0)) > 5000:
            raise StructureError(f"the grammar repeats a part {times} times; the limit is 5000")
        return repeat(node, int(low), int(high) if high else None if comma else int(low))


def _unescaped(match: re.Match[str]) -> str:
    code = match.group(1) or match.group(2)
    return chr(int(code, 16)) if code else _LETTERS.get(match.group(3), match.group(3))
