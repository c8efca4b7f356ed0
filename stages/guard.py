"""One optimiser step that changes nothing when its numbers are not finite, decided on the device, so that the host never waits for it.

Looked at are the losses, the norm of every gradient, and the averages that BatchNorm and its like have just taken. A step that fails
leaves weights, moments and buffers as they were before it; the loop (stages/loop.py) hears of it when it next looks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Guard:
    """`scaler` for fp16, which skips steps of its own: those in which a gradient overflowed because the scale was too high."""

    def __init__(self, modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer, clip: float | None, scaler=None, world: int = 1):
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        kept = [value for module in modules for key, value in module.state_dict(keep_vars=True).items()]
        self.buffers = [value for value in kept if not isinstance(value, nn.Parameter) and value.is_floating_point()]
        self.optimizer, self.clip, self.scaler, self.world = optimizer, clip, scaler, world
        self.before: Tensor | None = None

    def begin(self) -> None:
        """Before the first forward of a step, which changes the buffers."""
        self.before = self._flat()

    def update(self, losses: Sequence[Tensor]) -> Tensor:
        """After the last backward. Returns (), float: 1 if the step failed; what else the scaler skips is normal."""
        after = self._flat()
        watched = [*losses, *([after.sum()] if self.buffers else [])]
        if self.scaler:
            skipped, failed = self._scaled(watched)
        else:
            skipped = failed = self._step(watched)
        self._put_back(skipped, after)
        self.optimizer.zero_grad(set_to_none=True)
        return failed

    def _step(self, watched: list[Tensor]) -> Tensor:
        failed = self._agreed(_not_finite([*watched, *self._norms()]))
        self.optimizer.grad_scale, self.optimizer.found_inf = None, failed  # fused optimisers then leave everything as it is
        self.optimizer.step()
        return failed

    def _scaled(self, watched: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The scaler sees gradients only: where something else is wrong, they are made to show it."""
        wrong = self._agreed(_not_finite(watched))
        grads = [p.grad for p in self.parameters if p.grad is not None]
        grads[0].masked_fill_(wrong.bool(), float("nan"))
        lowest = self.scaler.scale(torch.ones((), device=wrong.device)) < 1  # where the scale cannot be to blame any more
        self.scaler.unscale_(self.optimizer)
        skipped = self._agreed(_not_finite(self._norms()))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return skipped, torch.maximum(wrong, skipped * lowest)

    def _norms(self) -> list[Tensor]:
        if self.clip:
            return [nn.utils.clip_grad_norm_(self.parameters, self.clip)]
        return list(torch._foreach_norm([p.grad for p in self.parameters if p.grad is not None]))

    def _agreed(self, failed: Tensor) -> Tensor:
        """What failed in one process failed in all."""
        if self.world > 1:
            torch.distributed.all_reduce(failed, torch.distributed.ReduceOp.MAX)
        return failed

    def _put_back(self, skipped: Tensor, after: Tensor | None) -> None:
        if not self.buffers or (skipped.device.type == "cpu" and not skipped):  # on a CPU asking costs nothing
            return
        values = torch.where(skipped.bool(), self.before, after).split([b.numel() for b in self.buffers])
        torch._foreach_copy_(self.buffers, [value.view_as(b) for value, b in zip(values, self.buffers, strict=True)])

    @torch.no_grad()
    def _flat(self) -> Tensor | None:
        """All buffers in one row."""
        return torch.cat([b.reshape(-1) for b in self.buffers]) if self.buffers else None


def _not_finite(values: Sequence[Tensor]) -> Tensor:
    """(), float: 1 if any of these numbers is not finite."""
    return 1.0 - torch.stack([value.float() for value in values]).isfinite().all().float()
