"""Training text from public packages: fetched, cleaned, split and recorded. Start at `build.build_corpus`."""

from corpus.build import build_corpus
from corpus.pins import Pin, read_pins, settings_of
from corpus.settings import CorpusSettings

__all__ = ["CorpusSettings", "Pin", "build_corpus", "read_pins", "settings_of"]
