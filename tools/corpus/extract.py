"""From a wheel to functions. Sources are read as text and parsed with `ast`; nothing is imported or run.

A sample is a whole function (decorators, signature, docstring, body), methods with their class's indentation taken
off. The imports of its module that it uses travel beside it, so that a training task may put them in front.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from typing import Any

from corpus.licences import Licence, read_licence
from corpus.settings import CorpusSettings
from scumble.errors import DataError

VENDORED = frozenset(
    (
        "_vendor", "vendor", "vendored", "_vendored", "_vendored_packages", "extern", "externals", "external",
        "third_party", "thirdparty", "3rdparty", "site-packages", "node_modules", "_bundled", "bundled",
    )
)  # fmt: skip
TESTS = frozenset(("tests", "test", "testsuite", "_tests", "unittests", "test_data", "testdata"))
_GENERATED_NAME = re.compile(r"(_pb2|_pb2_grpc|_pb)\.pyi?$|^(_version|version|parsetab|lextab|_parser_tables)\.py$")
_GENERATED_HEAD = re.compile(
    r"do not (?:manually )?(?:edit|modify)|(?:auto-?|automatically )generated|code generated|@generated"
    r"|\bgenerated (?:by|from|with|using|code|file)|changes (?:may|will) be (?:lost|overwritten)",
    re.I,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One training text. `imports` holds the module's import lines that the text uses ("" for whole files)."""

    text: str
    package: str
    kind: str = "function"
    documented: bool = False
    imports: str = ""

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(slots=True)
class Extraction:
    """What one wheel gave: samples in the order of the archive, its licence, and what was left out, by reason."""

    samples: list[Sample]
    licence: Licence
    dropped: Counter[str]
    source_files: int = 0


def extract_wheel(path: Path, package: str, settings: CorpusSettings) -> Extraction:
    """Read one wheel. Raises DataError for an archive that cannot be read; a licence that forbids gives no samples."""
    try:
        with zipfile.ZipFile(path) as archive:
            licence = _licence_of(archive)
            result = Extraction([], licence, Counter())
            if licence.permissive:
                for name, source in _sources(archive, settings, result.dropped):
                    result.source_files += 1
                    result.samples.extend(_from_source(name, source, package, settings, result.dropped))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, KeyError, OSError) as error:
        raise DataError(f"corrupt archive: {error}") from error
    result.samples = _within_budget(_unique(result.samples, result.dropped), settings, result.dropped)
    return result


def read_metadata(archive: zipfile.ZipFile) -> Message:
    """The headers of the wheel's METADATA; an empty message when it has none."""
    names = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
    if not names:
        return Message()
    return HeaderParser().parsestr(archive.read(names[0]).decode("utf-8", "replace"))


def _licence_of(archive: zipfile.ZipFile) -> Licence:
    metadata = read_metadata(archive)
    files: dict[str, str] = {}
    for wanted in metadata.get_all("License-File", []):
        for name in archive.namelist():
            if ".dist-info/" in name and name.endswith("/" + wanted) and archive.getinfo(name).file_size < 300_000:
                files[name] = archive.read(name).decode("utf-8", "replace")
    return read_licence(metadata, files)


def _sources(archive: zipfile.ZipFile, settings: CorpusSettings, dropped: Counter[str]) -> Iterator[tuple[str, str]]:
    """The wheel's own .py files as text with `\\n` line ends."""
    for info in sorted(archive.infolist(), key=lambda i: i.filename):
        if not info.filename.endswith(".py"):
            continue
        reason = _unwanted(PurePosixPath(info.filename), settings)
        if reason is None and info.file_size > settings.max_source_bytes:
            reason = "file: too large"
        if reason is not None:
            dropped[reason] += 1
            continue
        try:
            text = archive.read(info).decode("utf-8-sig")
        except UnicodeDecodeError:
            dropped["file: not utf-8"] += 1
            continue
        if _GENERATED_HEAD.search(_head(text)):
            dropped["file: generated"] += 1
            continue
        yield info.filename, text.replace("\r\n", "\n").replace("\r", "\n")


def _head(text: str) -> str:
    """Where generators sign: the very beginning, and the comment lines soon after."""
    comments = [line for line in text[400:1500].split("\n")[1:] if line.startswith("#")]
    return "\n".join([text[:400], *comments])


def _unwanted(path: PurePosixPath, settings: CorpusSettings) -> str | None:
    folders = {part.lower() for part in path.parts[:-1]}
    if folders & VENDORED or any(part.endswith(".data") for part in folders):
        return "file: vendored"
    if _GENERATED_NAME.search(path.name):
        return "file: generated"
    is_test = bool(folders & TESTS) or path.name == "conftest.py" or re.search(r"^test_|_tests?\.py$", path.name)
    if is_test and not settings.include_tests:
        return "file: test"
    return None


def _from_source(
    name: str, source: str, package: str, settings: CorpusSettings, dropped: Counter[str]
) -> Iterator[Sample]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        dropped["file: does not parse"] += 1
        return
    # Not str.splitlines: the parser counts only \n as the end of a line.
    lines = source.split("\n")
    imports = _module_imports(tree, lines)
    for node in _functions(tree):
        text = function_text(node, lines)
        reason = None if text is None else _unfit(node, text, settings)
        if reason is not None or text is None:
            dropped[reason or "function: odd indentation"] += 1
            continue
        used = _used_imports(node, imports)
        yield Sample(text, package, "function", ast.get_docstring(node, clean=False) is not None, used)
    if settings.include_files:
        yield from _whole_file(source, package, settings, dropped)


def _whole_file(source: str, package: str, settings: CorpusSettings, dropped: Counter[str]) -> Iterator[Sample]:
    text = "\n".join(line.rstrip() for line in source.split("\n")).strip("\n") + "\n"
    size = len(text.encode("utf-8", "replace"))
    if size > settings.max_file_bytes or size < 200 or _CONTROL.search(text):
        dropped["whole file: size or bytes"] += 1
    else:
        yield Sample(text, package, "file")


Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(tree: ast.Module) -> Iterator[Function]:
    """Top-level functions, and methods of classes at any depth; functions inside functions stay where they are."""
    pending: list[ast.stmt] = list(tree.body)[::-1]
    while pending:
        node = pending.pop()
        if isinstance(node, Function):
            yield node
        elif isinstance(node, ast.ClassDef):
            pending.extend(node.body[::-1])
        elif isinstance(node, ast.If | ast.Try):
            pending.extend((node.body + node.orelse)[::-1])


def function_text(node: Function, lines: list[str]) -> str | None:
    """The function's lines with its own indentation removed; None if a line cannot be unindented or uses tabs."""
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    head = lines[first - 1]
    indent = head[: len(head) - len(head.lstrip())]
    out = []
    for line in lines[first - 1 : node.end_lineno]:
        line = line.rstrip()
        if not line:
            out.append("")
        elif line.startswith(indent):
            out.append(line[len(indent) :])
        else:
            return None
        if out[-1].startswith("\t"):
            return None
    if "\t" in indent or not out[0].startswith(("def ", "async ", "@")):
        return None
    return "\n".join(out) + "\n"


def _unfit(node: Function, text: str, settings: CorpusSettings) -> str | None:
    count = text.count("\n")
    if count < settings.min_lines:
        return "function: too short"
    size = len(text.encode("utf-8", "replace"))
    if count > settings.max_lines or size > settings.max_function_bytes:
        return "function: too long"
    if max(map(len, text.split("\n"))) > settings.max_line_length:
        return "function: long lines"
    if _CONTROL.search(text) or "\ufffd" in text or size > 1.2 * len(text):
        return "function: odd characters"
    if _is_stub(node):
        return "function: stub"
    docstring = ast.get_docstring(node, clean=False)
    if docstring is not None and len(docstring) > settings.max_docstring_share * len(text):
        return "function: mostly docstring"
    return None


def _is_stub(node: Function) -> bool:
    """Whether nothing but a docstring, `pass`, `...` or `raise NotImplementedError` is inside, or it is an overload."""
    if any(getattr(d, "id", getattr(d, "attr", "")) in ("overload", "abstractmethod") for d in node.decorator_list):
        return True
    for statement in node.body:
        if isinstance(statement, ast.Pass) or (isinstance(statement, ast.Expr) and _is_constant(statement.value)):
            continue
        if isinstance(statement, ast.Raise) and "NotImplementedError" in ast.dump(statement):
            continue
        return False
    return True


def _is_constant(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant)


def _module_imports(tree: ast.Module, lines: list[str]) -> dict[str, str]:
    """Name bound at module level -> the one-line import that binds it."""
    bound: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                text = f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
                bound[(alias.asname or alias.name).split(".")[0]] = text
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            source = "." * node.level + (node.module or "")
            for alias in node.names:
                text = f"from {source} import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
                bound[alias.asname or alias.name] = text
    return bound


def _used_imports(node: Function, imports: dict[str, str], limit: int = 400) -> str:
    """The imports that the function's names refer to, one a line, in the module's order; "" if over `limit`."""
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    wanted = [text for name, text in imports.items() if name in names]
    text = "".join(f"{line}\n" for line in dict.fromkeys(wanted))
    return text if len(text) <= limit else ""


def _unique(samples: list[Sample], dropped: Counter[str]) -> list[Sample]:
    """Drop repeats inside the package now, so that they do not use up its share."""
    seen: dict[str, Sample] = {}
    for sample in samples:
        seen.setdefault("".join(sample.text.split()), sample)
    dropped["duplicate: exact"] += len(samples) - len(seen)
    return list(seen.values())


def _within_budget(samples: list[Sample], settings: CorpusSettings, dropped: Counter[str]) -> list[Sample]:
    """Keep at most max_bytes_per_package of each kind: documented functions first, then by the hash of the text."""
    kept: set[int] = set()
    for kind in ("function", "file"):
        order = [i for i, s in enumerate(samples) if s.kind == kind]
        order.sort(key=lambda i: (not samples[i].documented, hashlib.sha1(samples[i].text.encode()).digest()))
        room = settings.max_bytes_per_package
        for i in order:
            room -= len(samples[i].text.encode())
            if room < 0:
                break
            kept.add(i)
    if len(kept) < len(samples):
        dropped["over the package's share"] += len(samples) - len(kept)
    return [s for i, s in enumerate(samples) if i in kept]
