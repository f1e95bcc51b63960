"""String formats as patterns. Each is a set of texts that are certainly of the format, not all that there are."""

from __future__ import annotations

from functools import cache

from scumble.structure.pattern import parse_pattern
from scumble.structure.tree import Node

_DATE = (
    r"[12][0-9]{3}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9]|-[A-Za-z0-9]){0,20}"  # no two hyphens in a row: "xn--" has rules of its own
_TOP = r"[A-Za-z]{2,12}"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,2}}\.{_TOP}"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_GROUP = r"[0-9a-fA-F]{1,4}"
_IPV6 = (
    rf"(?:{_GROUP}:){{7}}{_GROUP}|::|::{_GROUP}(?::{_GROUP}){{0,5}}|{_GROUP}::(?:{_GROUP}(?::{_GROUP}){{0,4}})?"
    rf"|{_GROUP}:{_GROUP}::(?:{_GROUP}(?::{_GROUP}){{0,3}})?|{_GROUP}:{_GROUP}:{_GROUP}::(?:{_GROUP}(?::{_GROUP}){{0,2}})?"
)
_SEGMENT = r"[A-Za-z0-9._~-]"
_PATH = rf"(?:/{_SEGMENT}*)*"
_QUERY = rf"(?:\?(?:{_SEGMENT}|[=&])*)?(?:#{_SEGMENT}*)?"
_URI = rf"(?:https?|ftp)://{_HOST}(?::[1-9][0-9]{{1,3}})?{_PATH}{_QUERY}|urn:[a-z]{{2,12}}:[A-Za-z0-9._:-]+|mailto:[a-z]+@{_HOST}"
_POINTER = r"(?:/(?:[A-Za-z0-9_. -]|~[01])*)*"
_HEX = r"[0-9a-fA-F]"

PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"(?:{_DATE})T{_TIME}",
    "duration": r"P(?:[0-9]{1,4}W|[0-9]{1,4}D"
    r"|(?:[0-9]{1,4}Y(?:[0-9]{1,4}M(?:[0-9]{1,4}D)?)?|[0-9]{1,4}M(?:[0-9]{1,4}D)?)"
    r"|(?:[0-9]{1,4}D)?T(?:[0-9]{1,4}H(?:[0-9]{1,4}M(?:[0-9]{1,4}S)?)?|[0-9]{1,4}M(?:[0-9]{1,4}S)?|[0-9]{1,4}S))",
    "email": rf"[A-Za-z0-9](?:[A-Za-z0-9_+-]|\.[A-Za-z0-9]){{0,30}}@{_HOST}",
    "hostname": rf"{_LABEL}(?:\.{_LABEL}){{0,2}}(?:\.{_TOP})?",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": _IPV6,
    "uri": _URI,
    "uri-reference": rf"{_URI}|/(?:{_SEGMENT}+/)*{_SEGMENT}*|#{_SEGMENT}*",
    "uuid": rf"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9][0-9]{{0,3}})(?:#|{_POINTER})",
    "regex": r"(?:[A-Za-z0-9_ ]|\\[dws.]|\.)(?:[A-Za-z0-9_ ]|\\[dws.]|\.|[A-Za-z0-9][*+?])*",
}
_SAME = {
    "idn-email": "email", "idn-hostname": "hostname", "iri": "uri", "iri-reference": "uri-reference",
    "uri-template": "uri",
}  # fmt: skip
NAMES = frozenset(PATTERNS) | frozenset(_SAME)


@cache
def format_tree(name: str, quoted: bool) -> Node | None:
    """The texts of a format, quoted: as spelled inside a JSON string; None where JSON Schema has no such format."""
    pattern = PATTERNS.get(_SAME.get(name, name))
    return None if pattern is None else parse_pattern(pattern, quoted=quoted, what=f"format {name}")
