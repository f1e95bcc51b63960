"""Calibration from end to end: a first look through the model as it is, then layer by layer what rounding goes by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scumble.checkpoint.calibrate.samples import make_samples
from scumble.checkpoint.calibrate.stream import Stream
from scumble.checkpoint.calibrate.texts import read_texts
from scumble.checkpoint.calibrate.watch import LayerInputs
from scumble.checkpoint.files import read_header
from scumble.checkpoint.load import Contents, read_generation_config
from scumble.checkpoint.names import checkpoint_key
from scumble.checkpoint.quantized import Scheme
from scumble.checkpoint.schemes import Entry, assemble, parse_quantization
from scumble.errors import InvalidRequest
from scumble.settings import RELEASE_DEFAULTS

TOKENS = 32_768
MOST_TOKENS = 2**22


def check_tokens(tokens: int) -> None:
    if not 256 <= tokens <= MOST_TOKENS:
        raise InvalidRequest(f"calibration tokens must lie in 256 … {MOST_TOKENS}, found {tokens}")


def fingerprint(file: Path) -> str:
    """Of a calibration file's content, so that a conversion goes on with the same one only."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InvalidRequest(f"{file}: the calibration file cannot be read: {error.strerror or error}") from None


class Calibration:
    """A checkpoint and sample texts on their way through its layers. Layers come in order, each once:

    with `inputs` (watched in the checkpoint's numbers), then `go_on` (in the numbers that were written), or with the
    latter alone where the layer is written already.

    settings: the quantization_config of what is written.
    """

    def __init__(self, found: Contents, source: Path, file: Path, tokens: int, settings: dict[str, Any]):
        samples = make_samples(read_texts(file, source), found.config, tokens, file)
        self.tokens = sum(sample.tokens for sample in samples)
        self._stream, self._settings = Stream(found, samples), settings
        own = {**RELEASE_DEFAULTS, **read_generation_config(source)}
        self._temperatures = own["t_min"], own["t_max"]

    def look(self) -> Iterator[int]:
        """The first look, which canvases are conditioned on afterwards; yields after every layer."""
        stream = self._stream
        stream.begin()
        for index in range(len(stream.model.layers)):
            with stream.layer(index) as layer:
                stream.run(layer, index)
            yield index
        stream.begin(stream.look(*self._temperatures))

    @contextmanager
    def inputs(self, index: int) -> Iterator[LayerInputs]:
        """What the next layer's linear layers are given; its float weights are in memory meanwhile."""
        with self._stream.layer(index) as layer:
            inputs = LayerInputs(layer)
            self._stream.run(layer, index, keep=False)
            inputs.finish()
            yield inputs

    def go_on(self, index: int, file: Path) -> None:
        """Through the layer as it was written to a file."""
        with self._stream.layer(index, self._written(index, file)) as layer:
            self._stream.run(layer, index)

    def _written(self, index: int, file: Path) -> dict[str, Entry]:
        declared = Scheme("compressed-tensors", file, self._settings)
        entries = assemble(read_header(file), parse_quantization(declared)).entries
        names = [name for name in self._stream.found.plan if name.startswith(f"layers.{index}.")]
        return {name: entries[checkpoint_key(name)] for name in names}
