"""Licences, and what is taken from a wheel."""

from __future__ import annotations

import ast
from email.parser import HeaderParser
from pathlib import Path

import pytest

from corpus.extract import extract_wheel
from corpus.licences import expression_allowed, judge_text, read_licence
from corpus.settings import CorpusSettings
from scumble.errors import DataError

from .wheels import function, make_wheel


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("mit", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("MIT AND MPL-2.0", False),
        ("(MIT OR GPL-2.0-only) AND BSD-3-Clause", True),
        ("(MIT AND GPL-2.0-only) OR LGPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("LicenseRef-Proprietary", False),
        ("MIT MIT", False),
        ("(MIT", False),
        ("", False),
        ("AND", False),
    ],
)
def test_spdx_expressions(expression: str, allowed: bool) -> None:
    assert expression_allowed(expression) is allowed


@pytest.mark.parametrize(
    ("headers", "permissive", "reason"),
    [
        ("License-Expression: BSD-3-Clause\n", True, ""),
        ("License-Expression: GPL-3.0-only\nLicense: MIT\n", False, "licence expression is not permissive"),
        ("Classifier: License :: OSI Approved :: Apache Software License\n", True, ""),
        ("Classifier: License :: OSI Approved\n", False, "no licence metadata"),
        ("License: MIT\nClassifier: License :: OSI Approved :: GNU GPL\n", False, "copyleft licence"),
        ("License: Other/Proprietary License\n", False, "not an open licence"),
        ("License: see the web page\n", False, "unknown licence"),
        ("License: UNKNOWN\n", False, "no licence metadata"),
        ("", False, "no licence metadata"),
    ],
)  # fmt: skip
def test_metadata(headers: str, permissive: bool, reason: str) -> None:
    found = read_licence(HeaderParser().parsestr(headers))
    assert (found.permissive, found.reason) == (permissive, reason)


def test_licence_texts_are_recognized_by_their_words() -> None:
    mit = "Copyright (c) somebody. Permission is hereby granted, free of charge, to any person obtaining a copy " * 3
    assert judge_text(mit).name == "MIT"
    assert judge_text("GNU LESSER GENERAL PUBLIC LICENSE Version 3 " + "words " * 100).reason == "copyleft licence"
    assert judge_text("You may look at this on Sundays. " * 20).reason == "unknown licence"


def test_a_licence_file_counts_only_when_metadata_names_it(tmp_path: Path) -> None:
    text = "Redistribution and use in source and binary forms are permitted provided that " * 4
    files = {"quiet/a.py": function("one"), "quiet-1.0.dist-info/licenses/LICENSE": text}
    silent = extract_wheel(make_wheel(tmp_path, "quiet", files, metadata=""), "quiet", CorpusSettings())
    assert silent.licence.reason == "no licence metadata"
    assert silent.samples == []
    named = make_wheel(tmp_path, "quiet", files, metadata="License-File: LICENSE\n")
    assert extract_wheel(named, "quiet", CorpusSettings()).licence.name == "BSD"


def extract(tmp_path: Path, files: dict[str, str | bytes], **settings):
    return extract_wheel(make_wheel(tmp_path, "demo", files), "demo", CorpusSettings(**settings))


def test_functions_and_methods_keep_docstring_and_lose_indentation(tmp_path: Path) -> None:
    source = '''from typing import List
import os.path
import json as j


class Outer:
    class Inner:
        @property
        def size(self) -> List[int]:
            """How large it is."""
            inner = os.path.getsize(self.name)

            return [inner]   \n'''
    found = extract(tmp_path, {"demo/a.py": source})
    assert len(found.samples) == 1
    sample = found.samples[0]
    assert sample.text == (
        '@property\ndef size(self) -> List[int]:\n    """How large it is."""\n'
        "    inner = os.path.getsize(self.name)\n\n    return [inner]\n"
    )
    assert (sample.package, sample.kind, sample.documented) == ("demo", "function", True)
    assert sample.imports == "from typing import List\nimport os.path\n"
    ast.parse(sample.text)


def test_unusable_files_are_counted_not_fatal(tmp_path: Path) -> None:
    found = extract(
        tmp_path,
        {
            "demo/good.py": function("good"),
            "demo/broken.py": "def broken(:\n",
            "demo/nul.py": "x = 1\0\n",
            "demo/deep.py": "x = " + "(" * 5000 + ")" * 5000 + "\n",
            "demo/latin.py": "# caf\xe9\n".encode("latin-1"),
            "demo/_vendor/other.py": function("vendored"),
            "demo/tests/test_x.py": function("tested"),
            "demo/made_pb2.py": function("generated"),
            "demo/made.py": "# This file was automatically generated. DO NOT EDIT.\n" + function("made"),
            "demo/huge.py": "#" * 2_000_000,
            "demo/data.txt": "def no(): pass",
        },
    )
    assert [s.text for s in found.samples] == [function("good")]
    assert found.dropped["file: does not parse"] == 3
    assert found.dropped["file: not utf-8"] == 1
    assert found.dropped["file: vendored"] == 1
    assert found.dropped["file: test"] == 1
    assert found.dropped["file: generated"] == 2
    assert found.dropped["file: too large"] == 1


def test_functions_that_teach_nothing_are_counted(tmp_path: Path) -> None:
    source = "\n\n".join(
        [
            "def tiny(): return 1",
            'def stub(self):\n    """Say what a subclass does."""\n    raise NotImplementedError\n',
            "def wide(x):\n    a = 1\n    return '" + "z" * 300 + "'\n",
            "def long(x):\n" + "    x += 1\n" * 200 + "    return x\n",
            'def prose(x):\n    """' + "words upon words\n    " * 30 + '"""\n    x += 1\n    return x\n',
            "class K:\n    def odd(self):\n        a = '''\nat the margin\n'''\n        return a\n",
            function("kept"),
        ]
    )
    found = extract(tmp_path, {"demo/a.py": source})
    assert [s.text for s in found.samples] == [function("kept")]
    for reason in ("too short", "stub", "long lines", "too long", "mostly docstring", "odd indentation"):
        assert found.dropped[f"function: {reason}"] == 1, reason


def test_budget_prefers_documented_functions(tmp_path: Path) -> None:
    plain = [f"def plain_{i}(x):\n    y = x + {i}\n    return y * {i}\n" for i in range(20)]
    source = "\n\n".join([*plain, *(function(f"told_{i}") for i in range(5))])
    size = sum(len(function(f"told_{i}")) for i in range(5))
    found = extract(tmp_path, {"demo/a.py": source}, max_bytes_per_package=size)
    assert len(found.samples) == 5
    assert all(s.documented for s in found.samples)
    assert found.dropped["over the package's share"] == 20


def test_whole_files_on_request(tmp_path: Path) -> None:
    source = function("first") + "\n\n" + function("second")
    found = extract(tmp_path, {"demo/a.py": source}, include_files=True)
    assert [s.kind for s in found.samples] == ["function", "function", "file"]
    assert found.samples[-1].text == source


@pytest.mark.parametrize("damage", ["not a zip", "cut", "flipped"])
def test_corrupt_archives(tmp_path: Path, damage: str) -> None:
    path = make_wheel(tmp_path, "demo", {"demo/a.py": function("a", lines=200)})
    data = bytearray(path.read_bytes())
    if damage == "not a zip":
        data = bytearray(b"<html>sorry</html>")
    elif damage == "cut":
        del data[len(data) // 2 :]
    else:
        for i in range(60, 200):
            data[i] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(DataError, match="corrupt archive"):
        extract_wheel(path, "demo", CorpusSettings())
