"""Everything that changes while a student learns, in one place, so that it can be saved, put back, and found complete."""

import copy

import torch
from torch import Tensor, nn

from pipeline.errors import BadStore
from stages.fit import Fit
from stages.state import State


class Pupil:
    """The student, the modules inside its losses, averaged weights, optimiser and curves."""

    def __init__(self, student: nn.Module, terms: nn.Module, settings: Fit, device: torch.device, head: tuple[str, ...]):
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.student = student.to(device, memory_format=layout).train()
        self.terms = terms.to(device).train()
        self.ema = Ema(self.student, settings.ema) if settings.ema else None
        self.optimizer = optimizer_for(self.student, self.terms, settings, head)
        self.curves = Curves(settings)

    @property
    def result(self) -> nn.Module:
        """The network that will be published."""
        return self.ema.module if self.ema else self.student

    def not_finite(self) -> str:
        """Which weights are not finite, in words; empty if all are. Others are neither saved nor published."""
        for name, module in self._modules().items():
            bad = [key for key, value in module.state_dict().items() if value.is_floating_point() and not value.isfinite().all()]
            if bad:
                return f"{len(bad)} weights of the {name} are not finite, the first is {bad[0]}"
        return ""

    def captured(self) -> tuple[dict[str, Tensor], dict]:
        """Tensors, and the rest as JSON."""
        tensors = {}
        for name, module in self._modules().items():
            tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
        named = self._parameter_names()
        for parameter, kept in self.optimizer.state.items():
            tensors |= {f"optimizer/{named[parameter]}/{key}": value for key, value in kept.items() if value is not None}
        tensors = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
        return tensors, {"curves": self.curves.facts()}

    def put_back(self, state: State) -> None:
        """The inverse of captured(). What is missing or left over is an error: a half-restored run would go on quietly wrong."""
        left = dict(state.tensors)
        self.optimizer.state.clear()
        for name, module in self._modules().items():
            with torch.no_grad():
                for key, value in module.state_dict().items():
                    value.copy_(_taken(left, f"{name}/{key}", value.shape))
        self.curves.put_back(state.facts["curves"])
        named = {name: parameter for parameter, name in self._parameter_names().items()}
        for full in sorted(left):
            place, _, key = full.removeprefix("optimizer/").rpartition("/")
            if not full.startswith("optimizer/") or place not in named:
                raise BadStore(f"the training state holds {full}, which this training has no place for; delete the state to start over")
            self.optimizer.state[named[place]][key] = _like(named[place], left[full], key)

    def _modules(self) -> dict[str, nn.Module]:
        return {"student": self.student, "terms": self.terms} | ({"ema": self.ema.module} if self.ema else {})

    def _parameter_names(self) -> dict[nn.Parameter, str]:
        named = {"student": self.student, "terms": self.terms}
        return {parameter: f"{name}/{key}" for name, module in named.items() for key, parameter in module.named_parameters()}


ADVICE = "Lower fit.lr, set fit.clip, or train with precision bf16 or fp32"


class Ema:
    """Exponential moving average of weights and buffers; the decay rises at the start, so that the random start is soon forgotten."""

    def __init__(self, student: nn.Module, decay: float):
        self.module, self.decay = copy.deepcopy(student).eval().requires_grad_(False), decay
        pairs = list(zip(self.module.state_dict().values(), student.state_dict().values(), strict=True))
        self.floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self.others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([own for own, _ in self.floats], [new for _, new in self.floats], 1 - decay)
        for own, new in self.others:
            own.copy_(new)


class Curves:
    """The mean of every loss term over windows of steps. Added up step by step, so that it does not matter when anyone looked."""

    POINTS = 200  # about so many over a whole training

    def __init__(self, settings: Fit):
        self.window, self.steps = max(1, settings.steps // self.POINTS), settings.steps
        self.names: list[str] = []
        self.task: list[str] = []  # those of the names that make up the task loss
        self.sums: list[float] = []
        self.count = 0
        self.train: list[dict] = []
        self.val: list[dict] = []

    def name(self, names: list[str], task: list[str]) -> None:
        if not self.names:
            self.names, self.task, self.sums = names, task, [0.0] * len(names)

    def add(self, values: list[float]) -> None:
        """The weighted terms of one step."""
        self.sums = [a + b for a, b in zip(self.sums, values, strict=True)]
        self.count += 1

    def loss(self) -> float | None:
        """The mean total loss since the last point; None where every step since was skipped."""
        return sum(self.sums) / self.count if self.count else None

    def due(self, done: int) -> bool:
        return done % self.window == 0 or done == self.steps

    def close(self, done: int, lr: float) -> dict | None:
        """Ends a window: a point of the curve, unless every step of it was skipped."""
        if not self.count:
            return None
        means = {name: value / self.count for name, value in zip(self.names, self.sums, strict=True)}
        task = sum(means[name] for name in self.task)
        ratios = {name: value / task if task else 0.0 for name, value in means.items() if name not in self.task}
        self.train.append({"step": done, "loss": sum(means.values()), "terms": means, "ratios": ratios, "lr": lr})
        self.sums, self.count = [0.0] * len(self.names), 0
        return self.train[-1]

    KEPT = ("names", "task", "sums", "count", "train", "val")

    def facts(self) -> dict:
        return {key: getattr(self, key) for key in self.KEPT}

    def put_back(self, facts: dict) -> None:
        for key in self.KEPT:
            setattr(self, key, facts[key])


def optimizer_for(student: nn.Module, terms: nn.Module, settings: Fit, head: tuple[str, ...]) -> torch.optim.Optimizer:
    """One group per learning rate and decay; `scale` is the group's factor on the learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in [*student.named_parameters(), *((f"terms.{n}", p) for n, p in terms.named_parameters())]:
        scale = settings.head_lr if head and name.startswith(head) else 1.0
        decay = settings.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    listed = [{"params": params, "scale": scale, "weight_decay": decay} for (scale, decay), params in groups.items()]
    if settings.optimizer == "sgd":
        made = torch.optim.SGD(listed, lr=settings.lr, momentum=settings.momentum, fused=True)
        if settings.momentum:  # left to itself it takes memory as it finds it for its first step, and keeps that if the step is skipped
            made.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for params in groups.values() for p in params})
        return made
    return torch.optim.AdamW(listed, lr=settings.lr, betas=(settings.momentum, 0.999), fused=True)


def _taken(left: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    found = left.pop(name, None)
    if found is None or found.shape != shape:
        what = "lacks it" if found is None else f"holds it as {list(found.shape)}"
        raise BadStore(f"training needs {name} of shape {list(shape)}, the saved state {what}; delete the state to start over")
    return found


def _like(parameter: nn.Parameter, value: Tensor, key: str) -> Tensor:
    """Optimiser state as the optimiser made it: moments in the parameter's memory layout, the step count as a float of its own."""
    if value.shape != parameter.shape or key == "step":
        return value.to(parameter.device)
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
