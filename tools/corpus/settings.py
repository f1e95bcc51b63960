"""What decides which functions end up in the corpus: one frozen value, written into the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from scumble.errors import InvalidRequest


@dataclasses.dataclass(frozen=True, slots=True)
class CorpusSettings:
    """Limits of extraction, deduplication and splitting. Sizes are in bytes of UTF-8, shares between 0 and 1."""

    min_lines: int = 3
    max_lines: int = 120
    max_function_bytes: int = 4_000
    max_line_length: int = 200
    """Functions with a longer line are mostly tables and embedded data."""
    max_docstring_share: float = 0.85
    """Functions that are nearly all prose teach little code."""
    max_bytes_per_package: int = 3_000_000
    """So that no package, however large, sets the tone."""
    max_source_bytes: int = 1_000_000
    """Larger source files are left unread (also a guard against archives that unpack to gigabytes)."""
    include_tests: bool = False
    include_files: bool = False
    max_file_bytes: int = 24_000
    shingle: int = 5
    """Tokens a shingle, for near-duplicates."""
    near_duplicate: float = 0.8
    """Estimated Jaccard similarity of shingle sets from which the later text is dropped."""
    decontamination_words: int = 10
    """Length of the word n-gram that may not be shared with the benchmark."""
    train_share: float = 0.96
    validation_share: float = 0.02
    """The rest of the packages is the test split."""

    def __post_init__(self) -> None:
        for name in ("min_lines", "max_function_bytes", "max_bytes_per_package", "max_source_bytes", "shingle"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.max_lines < self.min_lines:
            raise InvalidRequest(f"max_lines ({self.max_lines}) is below min_lines ({self.min_lines})")
        if self.decontamination_words < 3:
            raise InvalidRequest(f"decontamination_words is {self.decontamination_words}; it must be 3 or more")
        if not 0 < self.near_duplicate <= 1:
            raise InvalidRequest(f"near_duplicate is {self.near_duplicate}; it must lie in (0, 1]")
        if self.train_share < 0 or self.validation_share < 0 or self.train_share + self.validation_share > 1:
            raise InvalidRequest("train_share and validation_share must be 0 or more and sum to at most 1")

    def extraction_key(self) -> str:
        """A short hash of the settings that change what is read from one wheel; a change makes old parts stale."""
        later = ("shingle", "near_duplicate", "decontamination_words", "train_share", "validation_share")
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in later}
        values = json.dumps({"format": 2, **fields}, sort_keys=True)
        return hashlib.sha256(values.encode()).hexdigest()[:16]
