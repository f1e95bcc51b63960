"""The tokenizer and the chat template of a checkpoint: from a folder's files, or a GGUF file's metadata."""

from __future__ import annotations

from pathlib import Path

from scumble.checkpoint.gguf.model import is_gguf
from scumble.checkpoint.gguf.reader import read_gguf
from scumble.checkpoint.gguf.tokenizer import chat_templates, has_tokenizer, token_names, tokenizer_backend
from scumble.reading import is_there
from scumble.text import ChatTemplate, Tokenizer


def read_tokenizer(path: Path) -> Tokenizer | None:
    """None where the checkpoint has none. Raises TokenizerError where it is damaged or of an unknown kind."""
    if not is_gguf(path):
        return Tokenizer.from_folder(path) if is_there(path / "tokenizer.json") else None
    gguf = read_gguf(path)
    if not has_tokenizer(gguf):
        return None
    return Tokenizer(tokenizer_backend(gguf), token_names=token_names(gguf))


def read_template(path: Path, tokenizer: Tokenizer) -> ChatTemplate:
    """The checkpoint's own chat template, else the built-in one. Raises TemplateError where neither serves."""
    if not is_gguf(path):
        return ChatTemplate.from_folder(path, tokenizer)
    sources = chat_templates(read_gguf(path))
    if "default" not in sources:
        return ChatTemplate.built_in(tokenizer)
    names = tokenizer.token_names
    return ChatTemplate(sources["default"], tool_source=sources.get("tool_use"), token_names=names)
