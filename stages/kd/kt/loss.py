"""The four terms of Knowledge Tailoring. Where the grids differ the teacher's maps come to the student's: it is cut to fit."""

from torch import Tensor, nn
from torch.nn.functional import triplet_margin_loss

from kernels.channel_kl import channel_kl
from kernels.logit_tailoring import logit_tailoring
from stages.kd._meet import on_grid, projector, unit

AUX = 0.4  # of the auxiliary logits beside the main ones, in the released code
SHORTEST = 1e-12  # norm of a channel below which it points nowhere


class KnowledgeTailoring(nn.Module):
    """`settings` is the row."""

    def __init__(self, settings, pair):
        super().__init__()
        self.weights = {f"kt_{name}": getattr(settings, name) for name in ("channel", "logit", "feature", "contrast")}
        self.temperature, self.switch = settings.temperature, settings.switch
        self.taps = ("logits", "aux") if "aux" in pair.student and "aux" in pair.teacher else ("logits",)
        self.features = bool(settings.feature or settings.contrast)
        if self.features:
            student, teacher = pair.student["head"], pair.teacher["head"]
            self.lift, self.cut = tailor(teacher), tailor(student)
            self.reach = projector(student, teacher) if settings.contrast else nn.Identity()
        self.requires_grad_(settings.trainable)

    def forward(self, step) -> dict[str, tuple[Tensor, float]]:
        terms = {}
        if self.weights["kt_channel"]:
            first, *aux = (self._ckl(*met(step, tap)) for tap in self.taps)
            terms["kt_channel"] = first + sum(AUX * other for other in aux)
        if self.weights["kt_logit"]:
            terms["kt_logit"] = self._logit(step)
        if self.features:
            terms |= self._tailored(step)
        return {name: (terms[name], weight) for name, weight in self.weights.items() if weight}

    def idle(self, progress: float) -> list[nn.Parameter]:
        """The weights that this phase has no use for."""
        nets = () if not self.features else (self.cut,) if progress < self.switch else (self.lift, self.reach)
        return [p for net in nets for p in net.parameters()]

    def _ckl(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.temperature**2 * channel_kl(student, teacher, temperature=self.temperature).mean()

    def _logit(self, step) -> Tensor:
        student, teacher = met(step, "logits")
        found = logit_tailoring(student, teacher, *step.histogram(student.shape[-2:]), temperature=self.temperature)  # (B, C)
        return self.temperature**2 * found.mean()

    def _tailored(self, step) -> dict[str, Tensor]:
        """Both terms on features."""
        student, teacher = met(step, "head")
        early, terms = step.progress < self.switch, {}
        net, idle = (self.lift, (self.cut,)) if early else (self.cut, (self.lift, self.reach, self.cut))
        own, theirs = (unit(net.flatten(2), 2, SHORTEST) for net in (student, teacher))  # (B, c, P)
        likeness = own @ theirs.mT  # (B, c_s, c_t), cosines
        high, low = parted(likeness.mT, student) if early else parted(likeness, teacher)
        high = net(high)
        if self.weights["kt_feature"]:
            terms["kt_feature"] = self._ckl(high, teacher) if early else self._ckl(student, high)  # its target gets no gradient
        if self.weights["kt_contrast"]:
            anchor = self.reach(student) if early else student
            terms["kt_contrast"] = triplet_margin_loss(anchor, high, net(low), margin=1.0, eps=1e-7)  # distances along the width
        return {name: term + untouched(idle) for name, term in terms.items()}


def met(step, tap: str) -> tuple[Tensor, Tensor]:
    """A tap of both networks in float32 at least, on the student's grid."""
    student = step.student[tap]
    return on_grid(student, student.shape[-2:]), on_grid(step.teacher[tap], student.shape[-2:], step.teacher_align_corners)


def tailor(width: int) -> nn.Module:
    inner = max(1, width // 2)
    convs = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, inner, 1), nn.Conv2d(inner, width, 1)
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])


def parted(likeness: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """(B, n, c) and (B, c, h, w) -> the alike part of the features and the rest, (1 - likeness) @ features, both (B, n, h, w)."""
    high = (likeness @ features.flatten(2)).unflatten(-1, features.shape[-2:])
    return high, features.sum(1, keepdim=True) - high


def untouched(modules) -> Tensor | float:
    """0, with a gradient of 0 for weights that a phase does not use: processes wait for the gradient of each."""
    return 0.0 * sum(p.sum() for module in modules for p in module.parameters() if p.requires_grad)
