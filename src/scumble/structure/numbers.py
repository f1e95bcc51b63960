"""JSON numbers with bounds and multiples, as trees.

A number is written without exponent, sign of zero or needless zeros in front: -?(0|[1-9]\\d*)(\\.\\d+)?. Unless bounds
ask for more there are at most 15 digits before the point and 15 behind it, which a double keeps apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

from scumble.structure import tree
from scumble.structure.tree import EPSILON, Node, StructureError, alt, both, optional, repeat, seq, text, without

DIGITS = 15
LARGEST_DIVISOR = 10_000  # states of a remainder automaton, times the digits behind the point
_DIGIT = tree.Chars(((0x30, 0x39),))
_NONZERO = tree.Chars(((0x31, 0x39),))


@dataclass(frozen=True)
class Numbers:
    """A set of numbers. low, high: None where there is none; *_open: the bound itself is outside.

    integer: True: whole numbers, False: all others, None: both. multiples: each divides every number.
    """

    integer: bool | None = None
    low: Decimal | None = None
    low_open: bool = False
    high: Decimal | None = None
    high_open: bool = False
    multiples: tuple[Decimal, ...] = ()

    def __and__(self, other: Numbers) -> Numbers | None:
        """Numbers of both sets; None where that is seen to be none."""
        if None not in (self.integer, other.integer) and self.integer != other.integer:
            return None
        low, low_open = max(
            [(self.low, self.low_open), (other.low, other.low_open)],
            key=lambda pair: (pair[0] is not None, pair[0] or Decimal(0), pair[1]),
        )
        high, high_open = min(
            [(self.high, self.high_open), (other.high, other.high_open)],
            key=lambda pair: (pair[0] is None, pair[0] or Decimal(0), not pair[1]),
        )
        integer = other.integer if self.integer is None else self.integer
        multiples = tuple(dict.fromkeys(self.multiples + other.multiples))
        found = Numbers(integer, low, low_open, high, high_open, multiples)
        return None if found._is_empty() else found

    def _is_empty(self) -> bool:
        if self.low is None or self.high is None:
            return False
        return self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))

    def __contains__(self, value: Decimal) -> bool:
        if self.integer is not None and self.integer != (value == value.to_integral_value()):
            return False
        if self.low is not None and (value < self.low or (self.low_open and value == self.low)):
            return False
        if self.high is not None and (value > self.high or (self.high_open and value == self.high)):
            return False
        return all((Fraction(value) / Fraction(multiple)).denominator == 1 for multiple in self.multiples)

    @lru_cache(maxsize=1024)  # noqa: B019  equal sets are one tree, so that build.py makes one automaton of it
    def tree(self) -> Node:
        """All spellings of the numbers of this set."""
        parts: list[Node] = [self._written()]
        if self.low is not None:
            parts.append(_at_least(self.low, self.low_open))
        if self.high is not None:
            parts.append(_at_most(self.high, self.high_open))
        parts += [_multiples_of(multiple) for multiple in self.multiples]
        return both(*parts)

    def _written(self) -> Node:
        bounds = [abs(bound) for bound in (self.low, self.high) if bound is not None]
        needed = max((_places(bound) for bound in bounds + list(self.multiples)), default=(1, 0))
        before = max(DIGITS, *(_places(bound)[0] for bound in bounds), 0) if bounds else DIGITS
        behind = max(DIGITS, needed[1], *(_places(bound)[1] + 1 for bound in bounds), 0)
        if max(before, behind) > 400:
            raise StructureError("a number's bound or multiple has more than 400 digits")
        whole = alt(text("0"), seq(_NONZERO, repeat(_DIGIT, 0, before - 1)))
        negative = seq(text("-"), _NONZERO, repeat(_DIGIT, 0, before - 1))
        some = seq(repeat(text("0")), _NONZERO, repeat(_DIGIT))  # a fraction that is not zero, of any length
        fraction = repeat(_DIGIT, 1, behind)
        if self.integer:
            return alt(whole, negative)
        below_one = seq(text("-0."), both(fraction, some))  # no -0 and no -0.0
        if self.integer is False:
            return alt(seq(alt(whole, negative), text("."), both(fraction, some)), below_one)
        return alt(seq(alt(whole, negative), optional(seq(text("."), fraction))), below_one)


def spellings(value: Decimal) -> Node:
    """Every spelling of one number: with any number of zeros behind the point."""
    whole, _, fraction = _plain(value).partition(".")
    if fraction:
        return seq(text(f"{whole}.{fraction}"), repeat(text("0")))
    return seq(text(whole), optional(seq(text(".0"), repeat(text("0")))))


def as_decimal(value: int | float) -> Decimal:
    """The number as it is written in JSON: 0.1 is a tenth, not the double beside it."""
    try:
        found = Decimal(value) if isinstance(value, int) else Decimal(repr(value))
    except ValueError:
        raise StructureError("a number has too many digits") from None
    if not found.is_finite():
        raise StructureError(f"a number must be finite, found {value}")
    return found


def but(numbers: Node, values: list[Decimal]) -> Node:
    return without(numbers, *(spellings(value) for value in values))


def _plain(value: Decimal) -> str:
    """Without exponent and without zeros at the end of a fraction."""
    if value and abs(value.adjusted()) > 400:
        raise StructureError("a number's bound or multiple has more than 400 digits")
    shown = f"{value:f}"
    if "." in shown:
        shown = shown.rstrip("0").rstrip(".")
    return "0" if shown in ("-0", "") else shown


def _places(value: Decimal) -> tuple[int, int]:
    """Digits before and behind the point."""
    whole, _, fraction = _plain(abs(value)).partition(".")
    return len(whole), len(fraction)


def _at_least(bound: Decimal, is_open: bool) -> Node:
    negative = seq(text("-"), repeat(tree.ANY_CHAR, 1))
    if bound > 0:
        return _above(bound, is_open)
    positive = repeat(alt(_DIGIT, text(".")), 1)
    if bound == 0:
        return _above(Decimal(0), True) if is_open else positive
    below = seq(text("-"), _below(-bound, is_open))
    return alt(positive, both(below, negative))


def _at_most(bound: Decimal, is_open: bool) -> Node:
    negative = seq(text("-"), repeat(alt(_DIGIT, text(".")), 1))
    if bound > 0:
        return alt(negative, _below(bound, is_open))
    if bound == 0:
        return negative if is_open else alt(negative, spellings(Decimal(0)))
    return seq(text("-"), _above(-bound, is_open))


def _above(bound: Decimal, is_open: bool) -> Node:
    """Numbers without sign ≥ (or >) bound ≥ 0. Digits are compared from the left; more digits are more."""
    whole, _, fraction = _plain(bound).partition(".")
    tail = optional(seq(text("."), repeat(_DIGIT, 1)))
    choices: list[Node] = [] if whole == "0" else [seq(_NONZERO, repeat(_DIGIT, len(whole)), tail)]
    if whole == "0":
        choices.append(seq(_NONZERO, repeat(_DIGIT), tail))
    else:
        choices += [
            seq(text(whole[:i]), _digits_over(whole[i]), repeat(_DIGIT, len(whole) - i - 1, len(whole) - i - 1), tail)
            for i in range(len(whole))
        ]
    over: list[Node] = [
        seq(text(fraction[:i]), _digits_over(fraction[i]), repeat(_DIGIT)) for i in range(len(fraction))
    ]
    some = seq(repeat(text("0")), _NONZERO, repeat(_DIGIT))
    over.append(seq(text(fraction), some))
    if not is_open:
        over.append(seq(text(fraction), repeat(text("0")) if fraction else repeat(text("0"), 1)))
        if not fraction:
            choices.append(text(whole))
    choices.append(seq(text(whole + "."), alt(*over)))
    return alt(*choices)


def _below(bound: Decimal, is_open: bool) -> Node:
    """Numbers without sign ≤ (or <) bound > 0."""
    whole, _, fraction = _plain(bound).partition(".")
    tail = optional(seq(text("."), repeat(_DIGIT, 1)))
    choices: list[Node] = []
    if len(whole) > 1:
        choices.append(seq(alt(text("0"), seq(_NONZERO, repeat(_DIGIT, 0, len(whole) - 2))), tail))
    for i, digit in enumerate(whole):
        rest = repeat(_DIGIT, len(whole) - i - 1, len(whole) - i - 1)
        choices.append(
            seq(text(whole[:i]), _digits_under(digit, least="1" if i == 0 and len(whole) > 1 else "0"), rest, tail)
        )
    under: list[Node] = []
    for i, digit in enumerate(fraction):
        under.append(seq(text(fraction[:i]), _digits_under(digit), repeat(_DIGIT)))
        under.append(text(fraction[:i]) if i else EPSILON)
    if not is_open:
        under.append(seq(text(fraction), repeat(text("0"))))
    fractions = both(alt(*under), repeat(_DIGIT, 1)) if under else tree.EMPTY
    choices.append(seq(text(whole + "."), fractions))
    if fraction or not is_open:
        choices.append(text(whole))
    return alt(*choices)


def _digits_over(digit: str) -> Node:
    return tree.Chars(((ord(digit) + 1, 0x39),)) if digit != "9" else tree.EMPTY


def _digits_under(digit: str, least: str = "0") -> Node:
    return tree.Chars(((ord(least), ord(digit) - 1),)) if digit > least else tree.EMPTY


def _multiples_of(multiple: Decimal) -> Node:
    """Numbers that a multiple divides, by the remainder of the digits read so far."""
    exponent = max(0, _places(multiple)[1])
    divisor = int(multiple.scaleb(exponent))
    if divisor * (exponent + 2) > LARGEST_DIVISOR:
        raise StructureError(
            f"multipleOf {multiple} needs {divisor * (exponent + 2)} states; the limit is {LARGEST_DIVISOR}"
        )
    edges: list[tuple[int, int, int, int]] = []
    ends: set[int] = set()
    # States: 0 the start, 1 behind the sign; then [digits behind the point][remainder], then only zeros may follow.
    base = lambda digits, rest: 2 + digits * divisor + rest  # noqa: E731
    zeros = 2 + (exponent + 1) * divisor
    for digit in range(10):
        for start in (0, 1):
            edges.append((start, 0x30 + digit, 0x30 + digit, base(0, digit % divisor)))
    edges.append((0, 0x2D, 0x2D, 1))
    for rest in range(divisor):
        for places in range(exponent + 1):
            state = base(places, rest)
            if rest * 10 ** (exponent - places) % divisor == 0:
                ends.add(state)
            if places == 0:
                edges.append((state, 0x2E, 0x2E, zeros + 1 + rest))  # the point itself
            for digit in range(10):
                after = (rest * 10 + digit) % divisor
                if places == 0:
                    edges.append((state, 0x30 + digit, 0x30 + digit, base(0, after)))
                if places < exponent:
                    source = zeros + 1 + rest if places == 0 else state
                    edges.append((source, 0x30 + digit, 0x30 + digit, base(places + 1, after)))
        last = zeros + 1 + rest if exponent == 0 else base(exponent, rest)
        if rest == 0:
            edges.append((last, 0x30, 0x30, zeros))
    edges.append((zeros, 0x30, 0x30, zeros))
    ends.add(zeros)
    return tree.Table(tuple(edges), frozenset(ends))
