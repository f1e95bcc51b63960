"""Which split a package belongs to: decided by its name alone, so a rebuild or a longer list moves nothing."""

from __future__ import annotations

import hashlib
from typing import Literal

from corpus.settings import CorpusSettings

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def split_of(package: str, settings: CorpusSettings) -> Split:
    """The split of a package (canonical name)."""
    digest = hashlib.blake2b(f"split:{package}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < settings.train_share:
        return "train"
    return "validation" if place < settings.train_share + settings.validation_share else "test"
