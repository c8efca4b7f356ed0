"""The one training loop: student against labels, and against a teacher where there is one.

The result is the last step (its averaged weights when `ema` is on); no validation chooses it. Stopped anywhere and started
again it goes on at the next step, to the same bytes on one machine's CPU as if nothing had happened.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from importlib.util import find_spec
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import BadRecipe, BadStore, Diverged, Missing, Stopped
from pipeline.keys import settings as settings_of
from pipeline.stage import Job
from stages import state as states
from stages.batches import crops, names_at
from stages.chance import seed_of
from stages.clock import Clock
from stages.fit import Fit
from stages.kd._step import Step
from stages.machine import cores
from stages.memory import keep_freed_memory
from stages.pupil import ADVICE, Pupil
from stages.watch import watched

LOOK_STEPS, LOOK_SECONDS = 10, 1.0  # how often the host waits for the device, to see the loss and to report


@dataclass(frozen=True)
class Fitted:
    weights: dict[str, Tensor]
    curves: dict[str, list]  # reproducible: no times in it
    val: dict[str, Any] | None
    beside: dict[str, Any]  # times, and what it ran on


def fit(
    student: nn.Module, terms: nn.Module, train, val, settings: Fit, job: Job, teacher: nn.Module | None = None, head: tuple[str, ...] = ()
) -> Fitted:
    """`terms` a stages.kd._terms.Terms; `train` and `val` (or None) Samples; `head` the prefixes of the weights that head_lr is for."""
    try:
        loop = Loop(student, terms, train, val, settings, job, teacher, head)
        while True:
            loop.validate_if_due()
            if loop.done == settings.steps:
                return loop.finished()
            loop.save_or_stop_if_due()
            loop.learn()
            loop.report_if_due()
    except torch.OutOfMemoryError:
        advice = "lower fit.batch or fit.crop, raise fit.accumulate, or use precision bf16"
        raise Missing(f"the device has too little memory for batches of {settings.batch}: {advice}") from None


class Loop:
    """`done` steps are behind it. Everything else that changes lies in `pupil`, which is what is saved."""

    def __init__(self, student, terms, train, val, settings: Fit, job: Job, teacher, head):
        self.train, self.val, self.settings, self.job = train, val, settings, job
        self.accelerator = _accelerator(settings, job)
        self.world, self.scaler = self.accelerator.num_processes, self.accelerator.scaler
        device = self.accelerator.device
        self.device = torch.device("cpu") if device.type == "cpu" else device  # "cpu:0" would be another device to torch
        if self.device.type == "cpu":
            keep_freed_memory()
        if settings.batch % (settings.accumulate * self.world):
            raise BadRecipe(f"fit.batch {settings.batch} must be a multiple of accumulate {settings.accumulate} x {self.world} processes")
        if self.world > 1 and self.device.type == "cuda":
            student = nn.SyncBatchNorm.convert_sync_batchnorm(student)
        self.pupil = Pupil(student, terms, settings, self.device, head)
        self.teacher = teacher.to(self.device).eval().requires_grad_(False) if teacher else None
        self.first = self.done = self._resume()
        self._prepare()
        self.workers = settings.workers if settings.workers is not None else 0 if self.device.type == "cpu" else min(8, cores())
        crop, rank, pin = tuple(settings.crop or train.size), self.accelerator.process_index, self.device.type == "cuda"
        self.batches = crops(train, settings, crop, self.done, rank, self.world, self.workers, pin)
        self.unseen: list[list[Tensor]] = []  # the terms of every part since the last look, still on the device

    def learn(self) -> None:
        """One optimiser step. Nothing in it waits for the device."""
        fit, rate = self.settings, self.settings.rate(self.done)
        for group in self.pupil.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        for part in range(fit.accumulate):
            with self.clock.waiting():
                images, labels = next(self.batches)
            self._seed(part)
            with nullcontext() if part + 1 == fit.accumulate else self.accelerator.no_sync(self.student):
                terms, task = self._terms(images, labels)
                loss = reduce(add, terms.values()) / fit.accumulate
                (self.scaler.scale(loss) if self.scaler else loss).backward()
            self.unseen.append([term.detach() for term in terms.values()])
        self._update()
        self.pupil.curves.name(list(terms), sorted(task))
        self.done += 1

    def validate_if_due(self) -> None:
        fit, curve = self.settings, self.pupil.curves.val
        due = self.done == fit.steps or (fit.validate_every and self.done and self.done % fit.validate_every == 0)
        if self.val is None or not due or any(point["step"] == self.done for point in curve):
            return
        self._look()
        with self.clock.pause():
            score = watched(self.pupil.result, self.val, fit, self.accelerator, self.workers, self._stop_if_asked)
        curve.append({"step": self.done, **score})
        self.accelerator.log({"val/miou": score["miou"]}, step=self.done)

    def report_if_due(self) -> None:
        curves, fit = self.pupil.curves, self.settings
        closing = curves.due(self.done)
        if not closing and not self._look_due():
            return
        self._look()
        loss = curves.loss()
        self.job.progress(self.done, fit.steps, loss=loss, ms=self.clock.look(self.done - self.first))
        if closing:
            point = curves.close(self.done, fit.rate(self.done - 1))
            self.accelerator.log({"loss": loss, "lr": point["lr"]} | {f"terms/{k}": v for k, v in point["terms"].items()}, step=self.done)

    def save_or_stop_if_due(self) -> None:
        self._stop_if_asked()
        if self._look_due() and self._agreed(self.clock.save_due(self.settings.save_every)):
            self._save()

    def finished(self) -> Fitted:
        self.accelerator.end_training()
        self.pupil.require_finite()
        weights = {key: value.detach().cpu() for key, value in self.pupil.result.state_dict().items()}
        curves = {"train": self.pupil.curves.train, "val": [{"step": p["step"], "miou": p["miou"]} for p in self.pupil.curves.val]}
        last = self.pupil.curves.val[-1] if self.val is not None else None
        val = {key: last[key] for key in ("miou", "iou", "split", "images")} if last else None
        beside = self.clock.facts() | self._ran()
        if beside["data_wait"] > 0.2 and not self.job.rehearsing:
            self.job.say(
                f"{beside['data_wait']:.0%} of the training time was spent waiting for data: raise fit.workers (now {self.workers})"
            )
        return Fitted(weights, curves, val, beside)

    def _update(self) -> None:
        """Directly on the optimiser: accelerate's wrapper around it looks for other packages at every step."""
        pupil, optimizer = self.pupil, self.pupil.optimizer
        if self.settings.clip:
            if self.scaler:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        if self.scaler:  # fp16: skips the step when a gradient overflowed
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if pupil.ema:
            pupil.ema.update(self.done)

    def _terms(self, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], set[str]]:
        images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()  # (B, 3, H, W), in memory NHWC still
        if not self.settings.channels_last:
            images = images.contiguous()
        taught = None
        if self.teacher:
            with torch.no_grad(), self.accelerator.autocast():
                taught = self.teacher(images)
        step = Step(
            self.student(images),
            taught,
            labels.to(self.device, non_blocking=True),
            maps=self.pupil.terms.maps,
            progress=self.done / self.settings.steps,
            align_corners=self.pupil.student.align_corners,
            teacher_align_corners=self.teacher.align_corners if self.teacher else None,
        )
        return self.terms(step)

    def _seed(self, part: int) -> None:
        """Dropout and the like depend on the place in the training only, so that resuming needs no generator's state."""
        seed = seed_of(self.settings.seed, "step", self.done, part, self.accelerator.process_index)
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # 70 times faster than torch.manual_seed, which looks for every kind of device
        else:
            torch.manual_seed(seed)

    def _look_due(self) -> bool:
        """Processes must agree without talking, so that with several only the step counts."""
        return self.done % LOOK_STEPS == 0 or (self.world == 1 and self.clock.since_look() > LOOK_SECONDS)

    def _stop_if_asked(self) -> None:
        """Each step with one process; with several where they meet anyway, so that all stop at the same step."""
        if self.world > 1 and not self._look_due():
            return
        if signal := self._agreed(self.job.stop_asked()):
            self._save()
            raise Stopped(f"stopped at step {self.done} of {self.settings.steps}; the same command goes on from there", signal)

    def _agreed(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.world == 1:
            return int(number)
        return int(self.accelerator.gather(torch.tensor([int(number)], device=self.device)).max())

    def _look(self) -> None:
        """Waits for the device: every step since the last look is checked, and added to the curves."""
        if not self.unseen:
            return
        rows = torch.stack([torch.stack(terms) for terms in self.unseen])  # (parts, terms)
        rows = self.accelerator.reduce(rows, "mean").tolist()
        self.unseen.clear()
        parts = self.settings.accumulate
        steps = [[sum(column) / parts for column in zip(*rows[i : i + parts], strict=True)] for i in range(0, len(rows), parts)]
        for step, values in enumerate(steps, self.done - len(steps)):
            if not all(map(math.isfinite, values)):
                names = ", ".join(sorted(set(names_at(step, self.train, self.settings))))
                raise Diverged(f"training diverged: the loss of step {step + 1} is not finite; its batch was {names}. {ADVICE}")
            self.pupil.curves.add(values)

    def _save(self) -> None:
        self._look()
        self.pupil.require_finite()
        if self.accelerator.is_main_process:
            scaler = self.scaler.state_dict() if self.scaler else None
            facts = {"fit": self._identity(), "seconds": self.clock.total(), "scaler": scaler}
            with self.clock.pause():
                states.save(self.job.state, self.pupil.captured(self.done, facts))
        self.clock.saved()

    def _resume(self) -> int:
        """The number of steps already done."""
        found = states.newest(self.job.state, self.job.say)
        self.clock = Clock(found.facts["seconds"] if found else 0.0)
        if found is None:
            return 0
        if found.facts["fit"] != self._identity():
            raise BadStore(f"the training state in {self.job.state} was saved under other settings; delete that folder to start over")
        self.pupil.put_back(found)
        if self.scaler:
            self.scaler.load_state_dict(found.facts["scaler"])
        self.job.say(f"resumed at step {found.step} of {self.settings.steps}")
        return found.step

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a saved state to go on."""
        return settings_of(self.settings) | {"processes": self.world}

    def _prepare(self) -> None:
        """What accelerate wraps for devices, precision and processes; `pupil` keeps the bare modules, which share their weights."""
        pupil, prepare = self.pupil, self.accelerator.prepare
        self.student = prepare(torch.compile(pupil.student) if self.settings.compile else pupil.student)
        self.parameters = [*pupil.student.parameters(), *pupil.terms.parameters()]
        self.terms = prepare(pupil.terms) if any(p.requires_grad for p in pupil.terms.parameters()) else pupil.terms

    def _ran(self) -> dict[str, Any]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        peak = torch.cuda.max_memory_allocated(self.device) / 1e6 if self.device.type == "cuda" else None
        parameters = sum(p.numel() for p in self.pupil.student.parameters())
        return {"device": name, "processes": self.world, "torch": torch.__version__, "peak_mb": peak, "parameters": parameters}


def _accelerator(settings: Fit, job: Job):
    from accelerate import Accelerator

    if settings.track == "tensorboard" and find_spec("tensorboard") is None:
        raise Missing("fit.track: tensorboard needs a package that is not installed: pip install 'stillhouse[track]'")
    folder = Path("tracking") / job.state.name
    tracker = settings.track if settings.track != "none" else None
    precision, no_device = {"fp32": "no"}.get(settings.precision, settings.precision), not torch.accelerator.is_available()
    try:
        # The pupil moves itself: moving it again would leave its averages looking at weights that nobody trains.
        accelerator = Accelerator(cpu=no_device, device_placement=False, mixed_precision=precision, log_with=tracker, project_dir=folder)
    except ValueError as error:  # accelerate says so when the device lacks a precision
        raise Missing(f"fit.precision {settings.precision} does not run on this machine: {error}") from None
    if settings.precision == "fp16" and accelerator.device.type == "cpu":
        raise Missing("fit.precision fp16 needs a GPU, and none was found; use bf16 or fp32")
    if tracker:
        accelerator.init_trackers("fit")
        job.say(f"curves for TensorBoard are written to {folder}")
    return accelerator
