"""The truth about logit_tailoring, in plain PyTorch: what every fast variant must equal. A CPU uses it: no loop over rows, and
each exp is taken once, for a softmax over all pixels of a row is made of those over the pixels inside the labels and outside.
"""

import torch
from torch import Tensor, logaddexp


def logit_tailoring(student: Tensor, teacher: Tensor, histogram: Tensor, cell_sizes: Tensor, temperature: float) -> Tensor:
    wide = torch.promote_types(student.dtype, torch.float32)
    pixels = cell_sizes.sum()
    inside, outside = (n.flatten(2).to(wide) / pixels for n in (histogram, cell_sizes - histogram))  # (B, C, P) parts of all pixels
    s, t = (logits.to(wide).flatten(2) / temperature for logits in (student, teacher))
    raised_s, capped_s = tailored(s, inside, outside)
    raised_t, capped_t = tailored(t, inside, outside)

    log_in, log_out = log(inside), log(outside)
    s_in, s_out = (raised_s + log_in).logsumexp(-1), (capped_s + log_out).logsumexp(-1)  # (B, C)
    s_raw = (s + log(cell_sizes.flatten().to(wide) / pixels)).logsumexp(-1)
    t_in, t_out = (raised_t + log_in).logsumexp(-1), (capped_t + log_out).logsumexp(-1)
    p_in, p_out = (raised_t + log_in - t_in[..., None]).exp(), (capped_t + log_out - t_out[..., None]).exp()  # each adds up to 1
    zeros_in, zeros_out = log(inside.sum(-1)), log(outside.sum(-1))  # of a mask's zeros

    def kl(s_all, t_in, t_out, gap_in, gap_out):  # gaps: the teacher's expectation of (teacher - student) inside and outside
        t_all = logaddexp(t_in, t_out)
        return (t_in - t_all).exp() * gap_in + (t_out - t_all).exp() * gap_out + s_all - t_all

    raw = kl(s_raw, t_in, t_out, (p_in * (raised_t - s)).sum(-1), (p_out * (capped_t - s)).sum(-1))
    kept_in = kl(logaddexp(s_in, zeros_out), t_in, zeros_out, (p_in * (raised_t - raised_s)).sum(-1), 0)
    kept_out = kl(logaddexp(zeros_in, s_out), zeros_in, t_out, 0, (p_out * (capped_t - capped_s)).sum(-1))
    return raw + kept_in + kept_out


def tailored(z: Tensor, inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, P) what a cell is where its pixels are of the class, and where they are not."""
    positive = inside * (z > 0)
    part = positive.sum(-1, keepdim=True)
    mu = torch.where(part > 0, (positive * z).sum(-1, keepdim=True) / torch.where(part > 0, part, 1), -torch.inf)
    nu = (outside * z).sum(-1, keepdim=True)  # by all pixels, not by those outside
    return torch.where(z < mu, mu, z), torch.where(z > nu, nu, z)


def log(part: Tensor) -> Tensor:
    """Of 0 it is -1e30, not -inf: its exp is 0, and a product with 0 stays 0."""
    return part.log().clamp(min=-1e30)
