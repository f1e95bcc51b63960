"""Sequence-level distillation: batches whose answers a teacher has written, token by token.

A text can go on in many ways. Who proposes all positions of a canvas at once mixes them, unless the target leaves no
choice; a greedy teacher leaves none. (Kim and Rush, 1606.07947; Gu et al., 1711.02281, for parallel decoders.) The
teacher here is the model that training starts from, or what has become of it meanwhile, decoding autoregressively.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from scumble.checkpoint import load_checkpoint
from scumble.model import Transformer
from scumble.train.batches import Batch, Specials
from scumble.train.greedy import greedy

LONGEST = 128  # tokens of an answer; a small teacher's longer ones mostly repeat themselves
LEAST = 16  # tokens that an answer may have though all of the batch's own are shorter


def open_teacher(folder: str, device: torch.device) -> Transformer:
    """The checkpoint in bfloat16, for inference."""
    return load_checkpoint(folder, torch.bfloat16, device)


def in_bfloat16(model: Transformer) -> Transformer:
    """A copy of a model in training, of its weights as they are now."""
    state = {name: tensor.detach().to(torch.bfloat16, copy=True) for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        copy = Transformer(model.config)
    copy.load_state_dict(state, assign=True)
    return copy.eval().requires_grad_(False)


def distilled(batch: Batch, teacher: Transformer, specials: Specials) -> Batch:
    """The batch with the teacher's greedy answers behind its prompts. A row whose answer does not come to its end keeps
    its own text: without these rows a canvas would only ever see short answers. `taught`: which rows are the teacher's.
    """
    own = int(batch.lengths.max()) - batch.prompt  # a teacher that writes more than any row has seldom comes to an end
    longest = min(LONGEST, max(LEAST, own), teacher.config.max_position_embeddings - batch.prompt)
    answers = greedy(teacher, torch.from_numpy(batch.ids[:, : batch.prompt]), longest)
    taught = np.array([answer[-1] == specials.eos for answer in answers])
    rows = [
        np.concatenate([row[: batch.prompt], answer]) if ended else row[:length]
        for row, length, answer, ended in zip(batch.ids, batch.lengths, answers, taught, strict=True)
    ]
    lengths = np.array([len(row) for row in rows])
    canvases = -(-max(1, int(lengths.max()) - batch.prompt) // batch.canvas)
    ids = np.full((len(rows), batch.prompt + canvases * batch.canvas), specials.pad, np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    return replace(batch, ids=ids, lengths=lengths, taught=taught)
