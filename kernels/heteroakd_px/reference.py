"""The truth about heteroakd_px, in plain PyTorch: what every fast variant must equal."""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid


def heteroakd_px(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, form: str) -> Tensor:
    wide = torch.promote_types(student.dtype, torch.float32)
    x = student.to(wide)
    if labels.is_floating_point():
        target, valid = labels.to(wide), (labels != 0).any(1)
    else:
        target = (labels[:, None] == torch.arange(x.shape[1], device=x.device)[:, None, None]).to(wide)
        valid = labels != 255
    mixed, omega = mixture(x.detach(), teacher.to(wide), target)
    return torch.where(valid, loss(x / temperature, mixed / temperature, omega, form), 0)


def mixture(x: Tensor, u: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What the student shall say, and how much each class of a pixel counts."""

    def h(z: Tensor) -> Tensor:  # softplus(z) - z Y without the cancellation: S needs to know how small it is
        return z.clamp(min=0) - z * target + z.abs().neg().exp().log1p()

    own, theirs = h(x), h(u)
    share = torch.where(own + theirs > 0, own / (own + theirs + 1e-6), 0.5)
    mixed = share * u + (1 - share) * x
    return mixed, (own + (own - h(mixed)).relu()).softmax(1)


def loss(x: Tensor, mixed: Tensor, omega: Tensor, form: str) -> Tensor:
    """(B, h, w), of logits over T."""
    if form == "bernoulli":
        yes, no = logsigmoid(mixed) - logsigmoid(x), logsigmoid(-mixed) - logsigmoid(-x)
        return (omega * (mixed.sigmoid() * yes + (-mixed).sigmoid() * no)).sum(1)
    log_q, log_p = log_softmax(mixed, 1), log_softmax(x, 1)
    return (omega * log_q.exp() * (log_q - log_p if form == "wkl" else -log_p)).sum(1)
