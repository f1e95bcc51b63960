"""What a run starts from: a folder that can be written, tokenizer, model, batches, optimizer. All checked here."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from scumble.checkpoint import load_checkpoint
from scumble.config import ModelConfig
from scumble.errors import DataError
from scumble.model import Transformer
from scumble.text import Tokenizer
from scumble.text.infill import MIDDLE, PREFIX, REPAIR, SUFFIX
from scumble.train.batches import Batches, Specials
from scumble.train.config import TrainConfig
from scumble.train.data import lengths, read_documents
from scumble.train.docstring import docstring_finder
from scumble.train.infill import infill_tokens
from scumble.train.init import new_model
from scumble.train.muon import Muon
from scumble.train.ranks import ALONE, Ranks
from scumble.train.read_config import check_fits


def require_writable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f"run.out must be a folder, found a file at {out}; remove it or name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise DataError(
            f"run.out: nothing can be written in {out}: {error.strerror}; make it writable or name another folder"
        ) from None


def open_tokenizer(folder: str) -> Tokenizer:
    if not (Path(folder) / "tokenizer.json").is_file():
        raise DataError(
            f"data.tokenizer: no tokenizer.json in {folder}; name a folder that has one; in Scumble's "
            "repository `python tools/corpus tokenizer` makes one from a corpus"
        )
    return Tokenizer.from_folder(folder)


def prepare_model(config: TrainConfig, tokenizer: Tokenizer) -> tuple[Transformer, Specials]:
    """The model to train, in float32: fresh from [model], or a checkpoint from run.init; and its special ids."""
    if config.model is None:
        model = load_checkpoint(config.run.init, torch.float32, ops="reference")
        eos, bos, pad = model.config.eos_token_ids, model.config.bos_token_id, model.config.pad_token_id
        if not eos or bos is None or pad is None:
            raise DataError(f"{config.run.init}: training needs eos, bos and pad ids in config.json")
        if tokenizer.vocab_size > model.config.vocab_size:
            raise DataError(
                f"{config.data.tokenizer}: tokenizer.json has {tokenizer.vocab_size} tokens, the model in "
                f"{config.run.init} only {model.config.vocab_size}; train with that model's own tokenizer"
            )
        check_fits(config, model.config.canvas_length, model.config.max_position_embeddings, config.run.init)
        return model, Specials(bos, eos[0], pad)
    ids = {name: tokenizer.token_id(f"<{name}>") for name in ("bos", "eos", "pad")}
    missing = [name for name, token in ids.items() if token is None]
    if missing:
        raise DataError(f"{config.data.tokenizer}: the tokenizer lacks <{missing[0]}>, which training needs")
    specials = Specials(**{name: int(token) for name, token in ids.items() if token is not None})
    shape = config.model.build(tokenizer.vocab_size, specials.eos, specials.bos, specials.pad)
    return new_model(shape, config.run.seed), specials


def make_batches(
    config: TrainConfig, source: str, tokenizer: Tokenizer, specials: Specials, model: ModelConfig, what: str
) -> Batches:
    documents = read_documents(source, tokenizer, what)
    if len(documents.ids) and (largest := int(documents.ids.max())) >= model.vocab_size:
        raise DataError(
            f"{what}: {source}: holds the token id {largest}, the model has {model.vocab_size} tokens; "
            f"pack it again with the tokenizer in {config.data.tokenizer}"
        )
    infill = infill_tokens(tokenizer) if config.objective.infill_share else None
    if config.objective.infill_share and infill is None:
        raise DataError(
            f"{config.data.tokenizer}: lacks {PREFIX}, {SUFFIX} or {MIDDLE}; set objective.infill_share = 0"
        )
    if config.objective.repair_share and infill is not None and infill.repair is None:
        raise DataError(f"{config.data.tokenizer}: lacks {REPAIR}; set objective.repair_share = 0")
    return Batches(
        documents, lengths(documents), specials,
        tokens=config.run.tokens, length=config.data.length, canvas=model.canvas_length,
        shortest_canvas=config.objective.shortest_canvas, prompt_share=config.objective.prompt_share,
        seed=config.run.seed, infill=infill,
        docstring_end=docstring_finder(tokenizer) if config.objective.body_share else lambda ids: 0,
    )  # fmt: skip


def make_optimizer(model: Transformer, config: TrainConfig, ranks: Ranks = ALONE) -> torch.optim.Optimizer:
    """AdamW, or Muon for the matrices inside the layers; norms and other vectors are not decayed."""
    own = config.optimizer
    betas = (own.beta1, own.beta2)
    vectors = {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}
    embedding = model.embed_tokens.weight
    matrices = [p for p in model.parameters() if p.ndim > 1 and p is not embedding]
    if own.muon:
        return Muon(
            matrices, [{"params": [embedding]}, vectors], lr=own.rate, weight_decay=own.weight_decay, betas=betas,
            ranks=ranks,
        )  # fmt: skip
    groups = [{"params": [embedding, *matrices], "weight_decay": own.weight_decay}, vectors]
    return torch.optim.AdamW(groups, lr=own.rate, betas=betas, fused=True)
