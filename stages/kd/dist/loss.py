"""One minus the correlation of two networks' probabilities, over the classes of a pixel and over the pixels of a class."""

from torch import Tensor, nn
from torch.linalg import vector_norm

from stages.kd._meet import same_grid

EPS = 1e-8  # beside the product of two norms
FLAT = 1e-6  # of the mean: float32 rounds by 6e-8


class Correlation(nn.Module):
    def __init__(self, weight: float, temperature: float, aux_weight: float):
        super().__init__()
        self.temperature = temperature
        self.weights = {"logits": weight} | ({"aux": weight * aux_weight} if aux_weight else {})

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        terms = {}
        for tap, weight in self.weights.items():
            maps = same_grid(step.student[tap], step.teacher[tap], step.align_corners)
            student, teacher = ((m / self.temperature).softmax(1) for m in maps)  # (B, K, h, w)
            name = "dist" if tap == "logits" else "dist_aux"
            terms[f"{name}_inter"] = (1 - correlation(student, teacher, (1,)).mean(), weight)
            terms[f"{name}_intra"] = (1 - correlation(student, teacher, (0, 2, 3)).mean(), weight)
        return terms


def correlation(x: Tensor, y: Tensor, over: tuple[int, ...]) -> Tensor:
    """Pearson's of positive numbers, over some dimensions; 0 where one of the two does not vary."""
    (x, x_length, x_varies), (y, y_length, y_varies) = (centred(v, over) for v in (x, y))
    found = (x * y).sum(over) / (x_length * y_length + EPS)
    return found.where(x_varies & y_varies, 0.0)


def centred(x: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """x without its mean, the length of that, and whether it is more than what float32 rounds away."""
    mean = x.mean(over, keepdim=True)
    length = vector_norm(x - mean, dim=over)
    count = x.numel() // mean.numel()
    return x - mean, length, length > FLAT * count**0.5 * mean.detach().squeeze(over)
