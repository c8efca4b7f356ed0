"""The mean cross-entropy over the pixels that have a label, plus that of the auxiliary head."""

from torch import Tensor, nn


class CrossEntropy(nn.Module):
    def __init__(self, aux_weight: float):
        super().__init__()
        self.aux_weight = aux_weight

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        terms = {"ce": (step.ce.sum() / step.count, 1.0)}  # the maps are 0 where there is no label
        if self.aux_weight:
            terms["aux"] = (step.aux_ce.sum() / step.count, self.aux_weight)
        return terms
