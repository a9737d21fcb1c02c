"""How weights follow their gradients: Muon where they multiply channels, AdamW for all others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from colorpress.core.config import Recipe

# Jordan 2024: five steps bring singular values between 0.7 and 1.2, which is as good as 1 here and faster.
_COEFFICIENTS, _STEPS = (3.4445, -4.7750, 2.0315), 5
_MOMENTUM = 0.95
# One learning rate is for both: at 0.2 a step is as long as AdamW's (Liu et al. 2025). Twice that taught more in a few
# hundred steps, and as much in many.
_LIKE_ADAMW = 0.4
# More rows than that, of more columns, are taken in equal groups where they can be, since their product costs the
# square of them: of 128 rows 32 at a time learned as much.
_MOST_ROWS = 64
# Fewer inputs or outputs than that are no directions to tell apart.
_FEWEST_CHANNELS = 8


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum: a step goes equally far in all directions of a matrix.

    `torch.optim.Muon` takes one matrix at a time, which costs a small network a tenth to a half of its step. Here those
    of one shape go together, and what is iterated is their product with themselves: rows times rows, not rows times
    columns.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; its scale by Liu et al. 2025,
    "Muon is scalable for LLM training".

    Args:
        weights: of two dimensions or more; all but the first count as one, those of a convolution with groups as well.
        lr: as for AdamW.
    """

    def __init__(self, weights: Sequence[Tensor], *, lr: float, weight_decay: float) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step by the gradients; `closure` is not called."""
        for group in self.param_groups:
            by_shape: defaultdict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append((weight, weight.grad, self._momentum_of(weight)))
            for alike in by_shape.values():
                self._step_(alike, group["lr"], group["weight_decay"])

    def _step_(self, alike: Sequence[tuple[Tensor, Tensor, Tensor]], lr: float, weight_decay: float) -> None:
        """Of weights of one shape, each with its gradient and its momentum."""
        # Channels innermost, as convolutions nearly always are while they learn: all that follows are views then.
        values, gradients, momenta = ([each.movedim(1, -1) for each in tensors] for tensors in zip(*alike, strict=True))
        torch._foreach_lerp_(momenta, gradients, 1.0 - _MOMENTUM)
        ahead = torch.stack(torch._foreach_lerp(gradients, momenta, _MOMENTUM))  # Nesterov's
        matrices = ahead.flatten(2)
        moves = orthogonalize(matrices.reshape(-1, _rows_at_a_time(*matrices.shape[1:]), matrices.shape[2]))
        torch._foreach_mul_(values, 1.0 - lr * weight_decay)
        rate = lr * _LIKE_ADAMW * max(moves.shape[1:]) ** 0.5
        torch._foreach_add_(values, moves.reshape(ahead.shape).unbind(), alpha=-rate)

    def _momentum_of(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum"]
        return momentum


def _rows_at_a_time(rows: int, columns: int) -> int:
    groups = -(-rows // _MOST_ROWS)
    return rows // groups if rows <= columns and rows % groups == 0 else rows


def orthogonalize(matrices: Tensor) -> Tensor:
    """The matrices (B, rows, columns) with all singular values near 1, by Newton and Schulz's method.

    Each step is a polynomial in X X^T times X, so all of them are one in the first X X^T, which is the smaller matrix.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT).mT
    a, b, c = _COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = x @ x.mT
    identity = a * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    whole = factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + identity
    for _ in range(_STEPS - 1):
        gram = factor @ gram @ factor
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + identity
        whole = factor @ whole
    answer: Tensor = whole @ x
    return answer


def make_optimizers(network: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    """What changes the parameters that are to be trained, by `recipe.optimizer`; each is of one of them."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    hidden = [each for each in parameters if recipe.optimizer == "muon" and _is_between_channels(each)]
    taken = set(map(id, hidden))
    others = [each for each in parameters if id(each) not in taken]
    # Norms and biases have one dimension: pulling them to zero only shifts activations.
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    return (adamw, Muon(hidden, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)) if hidden else (adamw,)


def _is_between_channels(weight: Tensor) -> bool:
    """Between enough channels, which leaves out those of a picture and convolutions of each channel by itself."""
    return weight.ndim > 1 and min(weight.shape[:2]) >= _FEWEST_CHANNELS


def step_(
    optimizers: Sequence[torch.optim.Optimizer], network: nn.Module, scaler: torch.amp.GradScaler, most_norm: float
) -> Tensor:
    """Change the network by its scaled gradients, clipped to a norm; the norm that they had.

    A scaler that finds one that is not finite leaves the step out, for all optimizers and not just for its own. Without
    one nothing asks, so that no GPU has to wait.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(network.parameters(), most_norm)
    if not scaler.is_enabled() or norm.isfinite():
        for optimizer in optimizers:
            scaler.step(optimizer)
    scaler.update()
    return norm
