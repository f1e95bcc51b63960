"""Regular expressions from a checkpoint's configuration, matched against module names in bounded time.

Python's `re` tries alternatives one after another, so a pattern like `(a+)+b` takes for ever on a name of a few dozen
letters. Whoever writes a checkpoint writes its patterns and its names. So patterns are looked at before they are used:
what repeats something that itself varies in length is refused, and so is a pattern with so many varying parts that all
ways to share a name out among them are too many to try.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scumble.errors import CheckpointError, shown

MOST_TRIES = 20_000_000  # less than a second
QUANTIFIER = re.compile(r"[*+?]|\{\d*,?\d*\}")
REFERENCE = re.compile(r"\\[1-9]|\(\?P=|\(\?\(")


def matcher(patterns: list[str], file: Path) -> Callable[[str], bool]:
    """Whether one of some regular expressions matches a name from its beginning.

    Raises CheckpointError for what is none or may take for ever; the function does so where a name is too long.
    """
    compiled = []
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"{file}: a pattern among targets or ignore is not a regular expression: {error}"
            ) from None
        ways = _ways(pattern)
        if ways is None:
            raise CheckpointError(
                f"{file}: the pattern {shown(pattern)} repeats something that varies itself, or refers back to what it "
                "matched, and may take for ever; write it without that"
            )
        compiled.append((expression, ways))

    def matches(name: str) -> bool:
        for expression, ways in compiled:
            if ways.on(len(name)) > MOST_TRIES:
                raise CheckpointError(
                    f"{file}: the pattern {shown(expression.pattern)} has too many ways to match a name of {len(name)} "
                    f"characters ({shown(name)}); write a simpler one"
                )
            if expression.match(name):
                return True
        return False

    return matches


@dataclass(frozen=True)
class Ways:
    """How a pattern can match: parts that take any number of characters, and choices among alternatives."""

    parts: int
    choices: int

    def on(self, length: int) -> int:
        """A bound on the ways to try on a name of so many characters."""
        return math.comb(length + self.parts, self.parts) * self.choices


def _ways(pattern: str) -> Ways | None:
    """None where a quantifier stands behind a group that holds another one or an alternative, and for references back:
    then there may be as many ways as two to the power of the name's length."""
    if REFERENCE.search(pattern):
        return None
    parts, choices, at = 0, 1, 0
    groups, bars = [False], [0]  # of every open group: whether it varies, and its alternatives but one
    closed_varies = False  # whether what stands just before varies in itself
    while at < len(pattern):
        found = QUANTIFIER.match(pattern, at)
        letter = pattern[at]
        if found and found.group() != "{}":
            repeats = found.group() != "?"
            if closed_varies and repeats:
                return None
            parts += 1
            groups[-1] = True
            at = found.end()
            if at < len(pattern) and pattern[at] in "?+":  # lazy or possessive
                at += 1
            closed_varies = False
            continue
        closed_varies = False
        if letter == "\\":
            at += 1
        elif letter == "[":
            at = _class_end(pattern, at)
        elif letter == "(":
            groups.append(False)
            bars.append(0)
            if pattern.startswith("(?", at):  # (?: (?= (?! (?P<
                at += 1
        elif letter == ")" and len(groups) > 1:
            closed_varies = groups.pop()
            groups[-1] = groups[-1] or closed_varies
            choices *= bars.pop() + 1
        elif letter == "|":
            groups[-1] = True
            bars[-1] += 1
        at += 1
    return Ways(parts, choices * (bars[0] + 1))


def _class_end(pattern: str, at: int) -> int:
    """Where the set of characters that begins at `at` has its closing bracket."""
    at += 2 if pattern.startswith("[^", at) else 1
    at += 1  # a bracket in the first place is a member
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at
