"""What the processes of one training must agree on, without which one of them would wait for the others forever."""

import torch
from torch import nn


class LostContact(Exception):
    """Another process of this training failed; that one says why."""


class Peers:
    def __init__(self, accelerator):
        self.accelerator, self.count, self.rank = accelerator, accelerator.num_processes, accelerator.process_index

    @property
    def first(self) -> bool:
        """The process that saves, publishes and speaks."""
        return self.rank == 0

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.count == 1:
            return int(number)
        return int(self.accelerator.gather(torch.tensor([int(number)], device=self.accelerator.device)).max())

    def same(self, number: int) -> bool:
        """Whether all processes hold the same number."""
        most, least = self.most(number), -self.most(-number)
        return most == least

    def share_buffers(self, module: nn.Module) -> None:
        """Every process keeps running averages of the batches it saw itself: those of the first one count."""
        if self.count > 1:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)
