"""Regular expressions, as JSON Schema (ECMA 262) and Python write them, to trees.

What has no automaton of reasonable size, or another meaning here than elsewhere, is refused by name: lookaround,
backreferences, word boundaries, atomic groups, inline flags. Greedy and lazy are the same for a language.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

from scumble.errors import shown
from scumble.structure import tree
from scumble.structure.tree import ANY, LAST_CODE_POINT, Node, Ranges, StructureError, complement, normal

LONGEST_PATTERN = 20_000  # characters
LARGEST_REPEAT = 5_000

_DIGIT: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Ranges = normal(
    [(9, 13), (32, 32), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
     (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)]
)  # fmt: skip
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CONTROL = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
_NEWLINES: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))


def parse_pattern(pattern: str, *, quoted: bool = False, anchored: bool = True, what: str = "the pattern") -> Node:
    """The language of a pattern.

    Args:
        pattern: the regular expression.
        quoted: spell its characters as inside a JSON string.
        anchored: the whole text must match; otherwise any part of it may (`pattern` in JSON Schema), and ^ and $ mean
            the text's ends.
        what: how errors call the pattern.

    Raises:
        StructureError: the pattern is damaged, or uses what is refused.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise StructureError(f"{what} has {len(pattern)} characters; the limit is {LONGEST_PATTERN}")
    parser = _Parser(pattern, quoted, what)
    try:
        branches = parser.branches()
    except RecursionError:
        raise StructureError(f"{what} is nested too deeply") from None
    if parser.at < len(pattern):
        parser.fail("a ) without its (")
    anything = tree.repeat(tree.Chars(ANY, quoted))
    whole = []
    for branch in branches:
        begin = tree.EPSILON if anchored or branch.from_start else anything
        end = tree.EPSILON if anchored or branch.to_end else anything
        whole.append(tree.seq(begin, branch.node, end))
    return tree.alt(*whole)


@dataclass
class _Branch:
    """One alternative. from_start, to_end: ^ and $ hold it to the text's ends."""

    node: Node
    from_start: bool = False
    to_end: bool = False


@dataclass
class _Parser:
    pattern: str
    quoted: bool
    what: str
    at: int = 0

    def fail(self, why: str) -> NoReturn:
        raise StructureError(f"{self.what} {shown(self.pattern)}: {why} (at character {self.at})")

    def peek(self, length: int = 1) -> str:
        return self.pattern[self.at : self.at + length]

    def take(self, expected: str) -> bool:
        if self.pattern.startswith(expected, self.at):
            self.at += len(expected)
            return True
        return False

    def branches(self) -> list[_Branch]:
        found = [self.branch()]
        while self.take("|"):
            found.append(self.branch())
        return found

    def branch(self) -> _Branch:
        """Parts up to | or ). A group whose alternatives are anchored by themselves spreads into this level."""
        result = _Branch(tree.EPSILON)
        parts: list[Node] = []
        while self.at < len(self.pattern) and self.peek() not in "|)":
            if self.take("^") or self.take("\\A"):
                if any(part != tree.EPSILON for part in parts):
                    self.fail("^ behind a character can never match, or needs multi-line mode, which is not supported")
                result.from_start = True
                continue
            if self.take("$") or self.take("\\Z") or self.take("\\z"):
                result.to_end = True
                continue
            if result.to_end:
                self.fail("a character behind $ can never match, or needs multi-line mode, which is not supported")
            begin = self.at
            part, anchors = self.atom()
            times = self.times()
            if anchors != (False, False):
                alone_left, alone_right = not parts, self.at == len(self.pattern) or self.peek() in "|)"
                if times != (1, 1) or (anchors[0] and not alone_left) or (anchors[1] and not alone_right):
                    self.at = begin
                    self.fail("^ or $ inside a group that is repeated or has something beside it")
                result.from_start |= anchors[0]
                result.to_end |= anchors[1]
            parts.append(part if times == (1, 1) else tree.repeat(part, *times))
        result.node = tree.seq(*parts)
        return result

    def times(self) -> tuple[int, int | None]:
        """The repetition behind an atom; (1, 1) where there is none."""
        if self.take("*"):
            found: tuple[int, int | None] = (0, None)
        elif self.take("+"):
            found = (1, None)
        elif self.take("?"):
            found = (0, 1)
        elif (braces := self._braces()) is not None:
            found = braces
        else:
            return 1, 1
        if self.take("+"):
            self.fail("possessive repetition is not supported")
        self.take("?")
        if (self.peek() and self.peek() in "*+?") or self._braces() is not None:
            self.fail("nothing to repeat")
        return found

    def _braces(self) -> tuple[int, int | None] | None:
        """{n}, {n,}, {n,m} and {,m}; anything else is literal text, as in ECMA 262 and Python."""
        close = self.pattern.find("}", self.at)
        if self.peek() != "{" or close < 0:
            return None
        low, comma, high = self.pattern[self.at + 1 : close].partition(",")
        digits = all(part == "" or (part.isascii() and part.isdigit()) for part in (low, high))
        if not digits or (low == "" and (high == "" or not comma)):
            return None
        self.at = close + 1
        least = int(low[:9] or 0)
        most = least if not comma else int(high[:9]) if high else None
        if max(least, most or 0) > LARGEST_REPEAT:
            self.fail(f"a repetition of more than {LARGEST_REPEAT}")
        if most is not None and most < least:
            self.fail(f"the repetition {{{least},{most}}} has its limits the wrong way round")
        return least, most

    def atom(self) -> tuple[Node, tuple[bool, bool]]:
        """One character, class or group; and whether a group is anchored at the text's start, and at its end."""
        character = self.peek()
        if character == "(":
            return self.group()
        self.at += 1
        if character in "*+?":
            self.at -= 1
            self.fail("nothing to repeat")
        if character == ".":
            return self.chars(complement(_NEWLINES)), (False, False)
        if character == "[":
            return self.chars(self.bracket()), (False, False)
        if character == "\\":
            return self.chars(self.escape(in_bracket=False)), (False, False)
        point = ord(character)
        if 0xD800 <= point <= 0xDFFF:
            self.fail(f"the lone surrogate U+{point:04X} is no character")
        return self.chars(((point, point),)), (False, False)

    def chars(self, ranges: Ranges) -> Node:
        ranges = normal(ranges)
        if not ranges:
            return tree.EMPTY
        if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
            letter = chr(ranges[0][0])
            if self.quoted and (ranges[0][0] < 0x20 and letter not in "\b\t\n\f\r"):
                return tree.EMPTY
            return tree.quoted_text(letter) if self.quoted else tree.text(letter)
        return tree.Chars(ranges, self.quoted)

    def group(self) -> tuple[Node, tuple[bool, bool]]:
        self.at += 1
        if self.take("?"):
            if self.take("<=") or self.take("<!") or self.take("=") or self.take("!"):
                self.fail("lookaround is not supported")
            if self.take("P<") or self.take("<"):
                close = self.pattern.find(">", self.at)
                if close < 0:
                    self.fail("a group's name without its >")
                self.at = close + 1
            elif not self.take(":"):
                self.fail(f"(?{self.peek()} is not supported; of groups, (…), (?:…) and (?<name>…) are")
        branches = self.branches()
        if not self.take(")"):
            self.fail("a ( without its )")
        anchors = {(branch.from_start, branch.to_end) for branch in branches}
        if len(anchors) > 1:
            self.fail("a group whose alternatives are anchored differently")
        return tree.alt(*(branch.node for branch in branches)), anchors.pop()

    def bracket(self) -> Ranges:
        negative = self.take("^")
        ranges: list[tuple[int, int]] = []
        first = True
        while first or self.peek() != "]":
            if self.at >= len(self.pattern):
                self.fail("a [ without its ]")
            if self.peek() == "]" and first and not negative:
                # [] is nothing in ECMA 262 and begins a class in Python
                self.fail("[] means different things to different engines; write \\] for the character")
            if self.peek(2) in ("[:", "[.", "[="):
                self.fail("POSIX classes are not supported")
            first = False
            low = self.member()
            if self.peek() == "-" and self.peek(2) not in ("-]", "-"):
                self.at += 1
                high = self.member()
                if len(low) != 1 or low[0][0] != low[0][1] or len(high) != 1 or high[0][0] != high[0][1]:
                    self.fail("a range whose end is a class")
                if high[0][0] < low[0][0]:
                    self.fail("a range with its ends the wrong way round")
                low = ((low[0][0], high[0][0]),)
            ranges += low
        self.at += 1
        return complement(normal(ranges)) if negative else normal(ranges)

    def member(self) -> Ranges:
        character = self.peek()
        self.at += 1
        if character == "":
            self.fail("a [ without its ]")
        return self.escape(in_bracket=True) if character == "\\" else ((ord(character), ord(character)),)

    def escape(self, *, in_bracket: bool) -> Ranges:
        letter = self.peek()
        self.at += 1
        if letter == "":
            self.fail("a \\ at the end")
        if letter.lower() in _CLASSES:
            found = _CLASSES[letter.lower()]
            return complement(found) if letter.isupper() else found
        if letter == "b" and in_bracket:
            return ((8, 8),)
        if letter == "0" and self.peek().isdigit():
            self.fail("octal escapes are not supported")
        if letter in _CONTROL:
            return ((_CONTROL[letter], _CONTROL[letter]),)
        if letter in "bB":
            self.fail("word boundaries are not supported")
        if letter.isdigit() or letter == "k":
            self.fail("backreferences are not supported")
        if letter in "xu":
            return self.code_point(letter)
        if letter in "pP":
            return self.property(letter)
        if letter == "c" and self.peek().isascii() and self.peek().isalpha():
            self.at += 1
            point = ord(self.pattern[self.at - 1]) % 32
            return ((point, point),)
        if letter.isascii() and letter.isalpha():
            self.fail(f"the escape \\{letter} is not supported")
        return ((ord(letter), ord(letter)),)

    def code_point(self, letter: str) -> Ranges:
        if letter == "u" and self.take("{"):
            close = self.pattern.find("}", self.at)
            digits, self.at = self.pattern[self.at : max(close, self.at)], close + 1
        else:
            width = 2 if letter == "x" else 4
            digits, self.at = self.peek(width), self.at + width
            if len(digits) < width:
                digits = ""
        try:
            point = int(digits, 16) if digits.isalnum() else -1
        except ValueError:
            point = -1
        if letter == "u" and 0xD800 <= point <= 0xDBFF and self.peek(2) == "\\u":  # a pair of surrogates
            low = self.pattern[self.at + 2 : self.at + 6]
            try:
                point = 0x10000 + ((point - 0xD800) << 10) + (int(low, 16) - 0xDC00)
                self.at += 6
            except ValueError:
                point = -1
        if not 0 <= point <= LAST_CODE_POINT:
            self.fail(f"a damaged \\{letter} escape")
        return ((point, point),)

    def property(self, letter: str) -> Ranges:
        if not self.take("{"):
            name = self.peek()
            self.at += 1
        else:
            close = self.pattern.find("}", self.at)
            name, self.at = self.pattern[self.at : max(close, self.at)], close + 1
        for prefix in ("gc=", "General_Category=", "Is"):
            name = name.removeprefix(prefix)
        name = _CATEGORY_NAMES.get(name, name)
        ranges = _category(name)
        if not ranges:
            self.fail(f"the character property {name!r} is not supported; general categories such as L, Lu and Nd are")
        return complement(ranges) if letter == "P" else ranges


_CATEGORY_NAMES = {
    "Letter": "L", "Lowercase_Letter": "Ll", "Uppercase_Letter": "Lu", "Mark": "M", "Number": "N",
    "Decimal_Number": "Nd", "Punctuation": "P", "Symbol": "S", "Separator": "Z", "Space_Separator": "Zs", "Other": "C",
}  # fmt: skip


@cache
def _category(name: str) -> Ranges:
    """Code points whose Unicode general category begins with `name`."""
    if not 1 <= len(name) <= 2 or not name.isalpha():
        return ()
    ranges, begin = [], -1
    for point in range(LAST_CODE_POINT + 2):
        member = point <= LAST_CODE_POINT and unicodedata.category(chr(point)).startswith(name)
        if member and begin < 0:
            begin = point
        elif not member and begin >= 0:
            ranges.append((begin, point - 1))
            begin = -1
    return normal(ranges)
