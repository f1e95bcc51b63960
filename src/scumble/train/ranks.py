"""Several processes train one model: each takes batches of its own, and all take the mean gradient.

Start them with `torchrun --nproc-per-node N -m scumble train CONFIG`; a process started alone is one rank of one.
On a CPU this uses cores far better than threads do for a small model, whose products are too small to share.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from scumble.train.objective import Losses


@dataclass(frozen=True)
class Ranks:
    """This process's number and how many there are. Rank 0 reports and saves."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, model: nn.Module, result: Losses) -> Losses:
        """Replace every gradient by its mean over all ranks; returns the losses of all ranks together."""
        if self.world == 1:
            return result
        # Which parameters have none depends on the phase alone (self-conditioning, before the canvas is trained), so
        # all ranks send the same; an expert that nobody chose has zeros in its stack.
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        figures = torch.tensor([result.causal, result.denoise, float(result.tokens)], device=gradients[0].device)
        packed = torch.cat([figures, *(gradient.flatten() for gradient in gradients)])
        dist.all_reduce(packed)
        packed /= self.world
        at = 3
        for gradient in gradients:
            gradient.copy_(packed[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()
        causal, denoise, tokens = packed[:3].tolist()
        return replace(result, causal=causal, denoise=denoise, tokens=round(tokens * self.world))

    def owners(self, sizes: Sequence[int]) -> list[int]:
        """Which rank does each of some pieces of work, so that all have about as much: the largest go first."""
        load, owners = [0] * self.world, [0] * len(sizes)
        for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
            owners[place] = load.index(min(load))
            load[owners[place]] += sizes[place]
        return owners

    def hand_out(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """Fill each tensor with its owner's; all have the same shapes and one dtype everywhere."""
        if self.world == 1:
            return
        for owner in range(self.world):
            own = [tensor for tensor, whose in zip(tensors, owners, strict=True) if whose == owner]
            if not own:
                continue
            packed = torch.cat([tensor.flatten() for tensor in own])
            dist.broadcast(packed, owner)
            if owner != self.rank:
                for tensor, part in zip(own, packed.split([tensor.numel() for tensor in own]), strict=True):
                    tensor.copy_(part.view_as(tensor))


ALONE = Ranks()


def join_ranks(device: torch.device) -> Ranks:
    """Meet the other processes that torchrun started, if it did."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return ALONE
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), world)
