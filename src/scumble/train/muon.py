"""Muon for matrices, AdamW for the rest, in one optimizer.

Muon (Jordan et al., 2024) replaces a matrix's momentum by the nearest orthogonal one, found by Newton-Schulz steps, so
that every direction learns at the same speed. Updates are scaled to a root mean square of 0.2, as in Moonlight
(2502.16982): one learning rate and one weight decay then serve both kinds of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from scumble.ops.quick import multiplies_bfloat16
from scumble.train.ranks import ALONE, Ranks

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: fast, to singular values in 0.7 … 1.2
STEPS = 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """matrices: parameters [..., m, n], each leading index a matrix of its own. others: AdamW.

    Where several processes train, each makes some of the matrices' updates orthogonal and hands them to the others.
    """

    def __init__(
        self,
        matrices: Iterable[Parameter],
        others: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
        ranks: Ranks = ALONE,
    ):
        self.ranks = ranks
        groups = [{"params": list(matrices), "orthogonal": True}, *others]
        defaults = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps, "orthogonal": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            some = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["orthogonal"]:
                updates = self._orthogonal(some)
            else:
                updates = (self._adam(parameter, group) for parameter in some)
            for parameter, update in zip(some, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])

    def _orthogonal(self, parameters: list[Parameter]) -> list[Tensor]:
        """Updates in bfloat16, the precision in which they are made."""
        owners = self.ranks.owners([parameter.numel() for parameter in parameters])
        updates = []
        for parameter, owner in zip(parameters, owners, strict=True):
            state, grad = self.state[parameter], parameter.grad
            assert grad is not None
            average = state.setdefault("exp_avg", torch.zeros_like(parameter))
            average.lerp_(grad, 1 - MOMENTUM)
            if owner == self.ranks.rank:
                ahead = grad.lerp(average, MOMENTUM)  # Nesterov
                updates.append(orthogonal(ahead.bfloat16()) * (0.2 * math.sqrt(max(parameter.shape[-2:]))))
            else:
                updates.append(torch.empty_like(parameter, dtype=torch.bfloat16))
        self.ranks.hand_out(updates, owners)
        return updates

    def _adam(self, parameter: Parameter, group: dict[str, Any]) -> Tensor:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        state["exp_avg"].lerp_(grad, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=1 - second)
        done = float(state["step"])
        spread = (state["exp_avg_sq"] / (1 - second**done)).sqrt_().add_(group["eps"])
        return state["exp_avg"] / (1 - first**done) / spread


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrices [..., m, n] with their singular values brought near 1, in bfloat16 products."""
    a, b, c = QUINTIC
    x = matrix.bfloat16() if multiplies_bfloat16(matrix.device) else matrix.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).contiguous()
    for _ in range(STEPS):
        square = x @ x.mT.contiguous()  # contiguous and fused: a third quicker on a CPU
        x = _add_product(a, x, _add_product(b, square, square, square, c), x)
    return (x.mT if tall else x).contiguous().to(matrix.dtype)


def _add_product(beta: float, base: Tensor, left: Tensor, right: Tensor, alpha: float = 1.0) -> Tensor:
    """beta · base + alpha · left · right."""
    if base.ndim == 2:
        return torch.addmm(base, left, right, beta=beta, alpha=alpha)
    return torch.baddbmm(base, left, right, beta=beta, alpha=alpha)
