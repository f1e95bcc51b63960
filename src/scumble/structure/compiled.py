"""Languages compiled for a vocabulary, kept in memory and on disk by digest."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from scumble.structure.automaton import Budget, Limits
from scumble.structure.classes import NEVER, Tokens, classify
from scumble.structure.graph import Graph
from scumble.structure.languages import Language
from scumble.structure.vocabulary import Vocabulary

log = logging.getLogger("scumble")

FORMAT = 3  # of the arrays and of what the front ends make; a change of either makes old files strangers
KEPT = 64  # compiled languages in memory


@dataclass(frozen=True, eq=False)
class Compiled:
    """A language over token ids. Equal only to itself, so that what is derived from it can be kept by it."""

    language: Language
    tokens: Tokens
    end_ids: tuple[int, ...]

    @cached_property
    def graph(self) -> Graph:
        return Graph.of(self.tokens)


_memory: OrderedDict[str, Compiled] = OrderedDict()
_lock = threading.Lock()


def compiled(
    language: Language,
    vocabulary: Vocabulary,
    end_ids: tuple[int, ...],
    limits: Limits | None = None,
    folder: Path | None = None,
) -> Compiled:
    """A language compiled for a vocabulary, from memory, from disk, or anew.

    folder: where compiled languages are kept; None: the user's cache folder. Raises StructureError.
    """  # fmt: skip
    limits = limits or Limits()
    name = f"{FORMAT} {vocabulary.digest} {sorted(end_ids)} {limits} {language.key}"
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    with _lock:
        if digest in _memory:
            _memory.move_to_end(digest)
            return _memory[digest]
    path = (cache_folder() if folder is None else folder) / f"{digest}.npz"
    tokens = _read(path, vocabulary)
    if tokens is None:
        budget = Budget(limits)
        tokens = classify(language.automaton(budget), vocabulary, end_ids, budget)
        _write(path, tokens)
    found = Compiled(language, tokens, tuple(sorted(end_ids)))
    with _lock:
        _memory[digest] = found
        while len(_memory) > KEPT:
            _memory.popitem(last=False)
    return found


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "scumble" / "structure"


def _read(path: Path, vocabulary: Vocabulary) -> Tokens | None:
    """None where there is no such file, or none that can be trusted: then it is made again."""
    try:
        with np.load(path, allow_pickle=False) as file:
            tokens = Tokens(file["of_token"], file["step"], file["ends"], file["distance"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    states, classes = tokens.step.shape if tokens.step.ndim == 2 else (0, 0)
    fits = (
        tokens.of_token.shape == (vocabulary.size,)
        and tokens.ends.shape == tokens.distance.shape == (states,)
        and states > 1
        and tokens.ends.dtype == bool
        and all(array.dtype.kind == "i" for array in (tokens.of_token, tokens.step, tokens.distance))
        and bool((tokens.step >= 0).all() and (tokens.step < states).all())
        and bool((tokens.of_token >= 0).all() and (tokens.of_token < classes).all())
        and bool((tokens.distance[1:] > 0).all() and tokens.distance[1] < NEVER)
    )
    return tokens if fits else None


def _write(path: Path, tokens: Tokens) -> None:
    """Beside its place, then moved there. A folder that cannot be written costs time, nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                np.savez_compressed(
                    file, of_token=tokens.of_token, step=tokens.step, ends=tokens.ends, distance=tokens.distance
                )
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        log.info("a compiled structure could not be kept in %s: %s", path.parent, error)
