"""May we train on it? The answer is read from the wheel's METADATA, and anything unclear is a no.

Order of trust: a `License-Expression` (SPDX) decides alone. Otherwise every licence classifier and the `License`
field are read, and one copyleft word among them is enough to leave the package out. Only when both are silent do the
licence files speak that METADATA names with `License-File`.
"""

from __future__ import annotations

import dataclasses
import re
from email.message import Message

PERMISSIVE_IDS = frozenset(
    """0BSD AFL-2.1 AFL-3.0 Apache-1.1 Apache-2.0 BSD-1-Clause BSD-2-Clause BSD-2-Clause-Patent BSD-2-Clause-Views
    BSD-3-Clause BSD-3-Clause-Clear BSD-3-Clause-LBNL BSD-3-Clause-Modification BSD-4-Clause BSL-1.0 BlueOak-1.0.0
    CC0-1.0 CNRI-Python HPND ICU ISC MIT MIT-0 MIT-CMU MIT-Modern-Variant NCSA PostgreSQL PSF-2.0 Python-2.0
    Python-2.0.1 Unicode-3.0 Unicode-DFS-2016 Unlicense UPL-1.0 W3C WTFPL X11 Zlib ZPL-2.0 ZPL-2.1""".lower().split()
)

_COPYLEFT = re.compile(
    r"GPL|GNU\b|affero|copyleft|mozilla|\bMPL|eclipse public|\bEPL|\bEUPL|\bCDDL|CeCILL|\bOSL\b|creative commons.*share"
    r"|\bCC-BY-(?:NC|SA)|sleepycat|artistic",
    re.I,
)
_CLOSED = re.compile(
    r"proprietary|commercial|all rights reserved\W*$|\bEULA|non-?commercial|no.?derivativ|business source|\bBUSL"
    r"|elastic license|server side public|\bSSPL|commons clause|\bRAIL\b|freeware|not open source|evaluation only",
    re.I,
)
_PERMISSIVE_NAMES = [
    ("MIT", re.compile(r"\bMIT\b|\bexpat\b", re.I)),
    ("Apache-2.0", re.compile(r"\bapache", re.I)),
    ("BSD", re.compile(r"\bBSD\b|\bBSD[-\d]|\b\d-clause", re.I)),
    ("PSF-2.0", re.compile(r"\bPSF|python software foundation|^python$|python license", re.I)),
    ("ISC", re.compile(r"\bISC\b|\bISCL\b", re.I)),
    ("Unlicense", re.compile(r"unlicense", re.I)),
    ("CC0-1.0", re.compile(r"\bCC0", re.I)),
    ("public domain", re.compile(r"public domain", re.I)),
    ("Zlib", re.compile(r"\bzlib", re.I)),
    ("ZPL", re.compile(r"\bZPL|zope public", re.I)),
    ("HPND", re.compile(r"\bHPND|historical permission", re.I)),
    ("BSL-1.0", re.compile(r"boost software|\bBSL-1", re.I)),
    ("WTFPL", re.compile(r"\bWTFPL|do what the f", re.I)),
    ("PostgreSQL", re.compile(r"postgresql licen[cs]e", re.I)),
]
_FULL_TEXTS = [
    ("MIT", "permission is hereby granted, free of charge, to any person obtaining a copy"),
    ("Apache-2.0", "apache license version 2.0"),
    ("Apache-2.0", "licensed under the apache license, version 2.0"),
    ("BSD", "redistribution and use in source and binary forms"),
    ("ISC", "permission to use, copy, modify, and/or distribute this software for any purpose with or without fee"),
    ("ISC", "permission to use, copy, modify, and distribute this software for any purpose with or without fee"),
    ("Unlicense", "this is free and unencumbered software released into the public domain"),
    ("PSF-2.0", "python software foundation license version 2"),
]


@dataclasses.dataclass(frozen=True, slots=True)
class Licence:
    """`name` as found (short), whether it is `permissive`, and if not, the `reason`."""

    name: str
    permissive: bool
    reason: str = ""


def read_licence(metadata: Message, files: dict[str, str] | None = None) -> Licence:
    """Judge a wheel by its METADATA headers; `files` maps the licence files it names to their text."""
    expression = (metadata.get("License-Expression") or "").strip()
    if expression:
        allowed = expression_allowed(expression)
        return Licence(_short(expression), allowed, "" if allowed else "licence expression is not permissive")
    classifiers = [c.split("::")[-1].strip() for c in metadata.get_all("Classifier", []) if c.startswith("License ::")]
    stated = [c for c in classifiers if c not in ("OSI Approved", "License")]
    field = (metadata.get("License") or "").strip()
    if field and field.upper() not in ("UNKNOWN", "NONE", "LICENSE", "SEE LICENSE", "OTHER"):
        stated.append(field)
    verdicts = [judge_text(text) for text in stated]
    if any(not v.permissive and v.reason != "unknown licence" for v in verdicts):
        return next(v for v in verdicts if not v.permissive and v.reason != "unknown licence")
    if any(v.permissive for v in verdicts):
        return next(v for v in verdicts if v.permissive)
    from_files = [judge_text(text) for text in (files or {}).values()]
    known = [v for v in from_files if v.reason != "unknown licence"]
    if known:
        return next((v for v in known if not v.permissive), known[0])
    if stated:
        return Licence(_short(stated[0]), False, "unknown licence")
    return Licence("", False, "no licence metadata")


def judge_text(text: str) -> Licence:
    """Judge a name ("BSD 3-Clause") or a whole licence text."""
    flat = " ".join(text.split())
    if len(flat) <= 200:
        if _COPYLEFT.search(flat):
            return Licence(_short(flat), False, "copyleft licence")
        if _CLOSED.search(flat):
            return Licence(_short(flat), False, "not an open licence")
        for name, pattern in _PERMISSIVE_NAMES:
            if pattern.search(flat):
                return Licence(name, True)
        return Licence(_short(flat), False, "unknown licence")
    lower = flat.lower()
    if re.search(r"gnu (?:lesser |affero |library )?general public licen|mozilla public licen", lower[:600]):
        return Licence(_short(flat), False, "copyleft licence")
    for name, opening in _FULL_TEXTS:
        if opening in lower or opening in lower.replace(",", ""):
            return Licence(name, True)
    return Licence(_short(flat), False, "unknown licence")


def expression_allowed(expression: str) -> bool:
    """Whether an SPDX expression lets us in: every AND part must be permissive, one OR part is enough."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression)
    position = 0

    def peek() -> str:
        return tokens[position].upper() if position < len(tokens) else ""

    def either() -> bool:
        nonlocal position
        allowed = both()
        while peek() == "OR":
            position += 1
            allowed = both() or allowed
        return allowed

    def both() -> bool:
        nonlocal position
        allowed = single()
        while peek() == "AND":
            position += 1
            allowed = single() and allowed
        return allowed

    def single() -> bool:
        nonlocal position
        if position >= len(tokens):
            return False
        token = tokens[position]
        position += 1
        if token == "(":
            allowed = either()
            closed = peek() == ")"
            position += 1
            return allowed and closed
        if peek() == "WITH":
            position += 2
        return token.lower() in PERMISSIVE_IDS

    return either() and position == len(tokens)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else flat[:57] + "..."
