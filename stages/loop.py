"""The one training loop: student against labels, and against a teacher where there is one.

The result is the last step (its averaged weights when `ema` is on); no validation chooses it. Stopped anywhere and started
again it goes on at the next step, to the same bytes on one machine's CPU as if nothing had happened.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from kernels.choose import choices, slow
from pipeline.errors import Diverged, Stopped
from pipeline.stage import Job
from stages.batches import crops, faster, held, names_at
from stages.chance import seed_of
from stages.clock import Clock
from stages.device import accelerator_for, exact, room_explained
from stages.fit import Fit
from stages.guard import Guard
from stages.kd._step import Step
from stages.machine import cores
from stages.memory import keep_freed_memory
from stages.peers import Peers
from stages.pupil import ADVICE, Pupil
from stages.savings import Savings
from stages.setbacks import ROUNDS, Setback, Setbacks
from stages.watch import watched

LOOK_STEPS, LOOK_SECONDS = 10, 1.0  # how often the host waits for the device, to see the loss and to report


@dataclass(frozen=True)
class Fitted:
    weights: dict[str, Tensor]
    curves: dict[str, list]  # reproducible: no times in it
    val: dict[str, Any] | None
    beside: dict[str, Any]  # times, and what it ran on
    publishes: bool = True  # with several processes only the first one does


def fit(
    student: nn.Module, terms: nn.Module, train, val, settings: Fit, job: Job, teacher: nn.Module | None = None, head: tuple[str, ...] = ()
) -> Fitted:
    """`terms` a stages.kd._terms.Terms; `train` and `val` (or None) Samples; `head` the prefixes of the weights that head_lr is for."""
    with exact(settings), room_explained(settings, settings.crop or train.size):
        loop = Loop(student, terms, train, val, settings, job, teacher, head)
        while True:
            try:
                loop.validate_if_due()
                if loop.done == settings.steps:
                    return loop.finished()
                loop.save_or_stop_if_due()
                loop.learn()
                loop.report_if_due()
            except Setback as setback:
                loop.go_back(setback)


class Loop:
    """`done` steps are behind it. Everything else that changes lies in `pupil`, which is what is saved."""

    def __init__(self, student, terms, train, val, settings: Fit, job: Job, teacher, head):
        self.train, self.val, self.settings, self.job = train, val, settings, job
        self.accelerator = accelerator_for(settings, job)
        self.peers, self.scaler = Peers(self.accelerator), self.accelerator.scaler
        device = self.accelerator.device
        self.device = torch.device("cpu") if device.type == "cpu" else device  # "cpu:0" would be another device to torch
        if self.device.type == "cpu":
            keep_freed_memory()
        if why := slow(self.device.type):
            job.say(f"the losses are computed by plain PyTorch, which is slower: for the kernels {why}")
        if settings.processes > 1 and self.device.type == "cuda":
            student, terms = (nn.SyncBatchNorm.convert_sync_batchnorm(module) for module in (student, terms))
        self.pupil = Pupil(student, terms, settings, self.device, head)
        self.teacher = teacher.to(self.device).eval().requires_grad_(False) if teacher else None
        self.setbacks = Setbacks(settings.steps)
        self.savings = Savings(job, settings, self.pupil, self.scaler, self.setbacks, self.peers)
        found = self.savings.resume()
        self.clock = Clock(found.facts["seconds"] if found else 0.0)
        self._prepare()
        self.workers = settings.workers if settings.workers is not None else 0 if self.device.type == "cpu" else min(8, cores())
        if settings.data == "device":
            with self.clock.pause():
                self.train = held(train, self.device, self.workers, job, self.peers)
        self.unseen: list[tuple[list[Tensor], Tensor]] = []  # per step since the last look: the terms of its parts, and whether it failed
        self._go_on_from(found.step if found else 0)

    def learn(self) -> None:
        """One optimiser step. Nothing in it waits for the device."""
        fit, parts = self.settings, []
        for group in self.pupil.optimizer.param_groups:
            group["lr"] = self._rate(self.done) * group["scale"]
        self.guard.begin()
        for part in range(fit.accumulate):
            with self.clock.waiting():
                images, labels = next(self.batches)
            self._seed(part)
            with nullcontext() if part + 1 == fit.accumulate else self.accelerator.no_sync(self.student):
                terms, task = self._terms(images, labels)
                loss = reduce(add, terms.values()) / fit.accumulate
                (self.scaler.scale(loss) if self.scaler else loss).backward()
            parts.append(torch.stack([term.detach() for term in terms.values()]))
        for parameter in self.pupil.terms.waiting(self.done / fit.steps):
            parameter.grad = None
        failed = self.guard.update([part.sum() for part in parts])
        if self.pupil.ema:
            self.pupil.ema.update(self.done)
        self.unseen.append((parts, failed))
        self.pupil.curves.name(list(terms), sorted(task))
        self.done += 1
        self.clock.stepped()

    def validate_if_due(self) -> None:
        fit, curve = self.settings, self.pupil.curves.val
        due = self.done == fit.steps or (fit.validate_every and self.done and self.done % fit.validate_every == 0)
        if self.val is None or not due or any(point["step"] == self.done for point in curve):
            return
        self._look()
        self.peers.share_buffers(self.pupil.result)
        with self.clock.pause():
            score = watched(self.pupil.result, self.val, fit, self.accelerator, self.workers, self._stop_if_asked)
        curve.append({"step": self.done, **score})
        self.savings.outdated()
        self.accelerator.log({"val/miou": score["miou"]}, step=self.done)

    def report_if_due(self) -> None:
        curves, fit = self.pupil.curves, self.settings
        closing = curves.due(self.done)
        if not closing and not self._look_due():
            return
        self._look()
        loss = curves.loss()
        self.job.progress(self.done, fit.steps, **({} if loss is None else {"loss": loss}), ms=self.clock.look())
        if closing and (point := curves.close(self.done, self._rate(self.done - 1))):
            self.accelerator.log({"loss": loss, "lr": point["lr"]} | {f"terms/{k}": v for k, v in point["terms"].items()}, step=self.done)

    def save_or_stop_if_due(self) -> None:
        if self.setbacks.milestone(self.done) and (self.savings.step, self.savings.milestone) != (self.done, True):
            self._require_finite()
            self._save(milestone=True)
        self._stop_if_asked()
        if self._look_due() and self.peers.most(self.clock.save_due(self.settings.save_every)):
            self._save_if_sound()

    def go_back(self, setback: Setback) -> None:
        """To the last milestone before what went wrong, and on from there with half the learning rate."""
        batch = f"; the batch of step {setback.step + 1} was {', '.join(self._names(setback.step))}" if setback.step >= 0 else ""
        if self.setbacks.round == ROUNDS or setback.step < self.setbacks.begun:
            again = f", after going back {self.setbacks.round} times to learn more slowly" if self.setbacks.round else ""
            raise Diverged(f"training diverged: {setback.what}{again}{batch}. {ADVICE}")
        target = self.setbacks.target(setback.step)
        if self.savings.back_to(target) is None:
            self._go_on_from(self.savings.back_before(target).step)
            return
        self._go_on_from(target)
        self.setbacks.went_back(setback.at, target)
        self.job.say(f"{setback.what}{batch}. Going back to step {target}, and on with half the learning rate")
        self._save(milestone=True)

    def finished(self) -> Fitted:
        self._require_finite()
        for tracker in self.accelerator.trackers:  # end_training() would also take leave of the other processes, and wait for those gone
            tracker.finish()
        weights = {key: value.detach().cpu() for key, value in self.pupil.result.state_dict().items()}
        curves = {"train": self.pupil.curves.train, "val": [{"step": p["step"], "miou": p["miou"]} for p in self.pupil.curves.val]}
        curves["events"] = self.setbacks.events
        last = self.pupil.curves.val[-1] if self.val is not None else None
        val = {key: last[key] for key in ("miou", "iou", "split", "images")} if last else None
        beside = self.clock.facts() | self._ran()
        if beside["data_wait"] > 0.2 and not self.job.rehearsing:
            hint = faster(self.settings, self.device, self.workers)
            self.job.say(f"{beside['data_wait']:.0%} of the training time was spent waiting for data: {hint}")
        return Fitted(weights, curves, val, beside, self.peers.first)

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

    def _rate(self, step: int) -> float:
        return self.settings.rate(step) * self.setbacks.factor

    def _look_due(self) -> bool:
        """Processes must agree without talking, so that with several only the step counts."""
        return self.done % LOOK_STEPS == 0 or (self.peers.count == 1 and self.clock.since_look() > LOOK_SECONDS)

    def _look(self) -> None:
        """Waits for the device: every step since the last look is judged in its turn, and added to the curves."""
        unseen, self.unseen = self.unseen, []
        if not unseen:
            return
        rows = torch.stack([torch.stack(parts) for parts, _ in unseen])  # (steps, parts, terms)
        rows = self.accelerator.reduce(rows, "mean").tolist()
        failed = torch.stack([failed for _, failed in unseen]).tolist()
        for step, (parts, skipped) in enumerate(zip(rows, failed, strict=True), self.done - len(rows)):
            if skipped:
                names = self._names(step)
                self.job.say(f"step {step + 1} is skipped: its loss or gradients are not finite; its batch was {', '.join(names)}")
                self.setbacks.skipped(step, names)
            else:
                self.setbacks.fine()
                self.pupil.curves.add([sum(term) / len(parts) for term in zip(*parts, strict=True)])

    def _names(self, step: int) -> list[str]:
        return sorted(set(names_at(step, self.train, self.settings)))

    def _stop_if_asked(self) -> None:
        """Each step with one process; with several where they meet anyway, so that all stop at the same step."""
        if self.peers.count > 1 and not self._look_due():
            return
        if signal := self.peers.most(self.job.stop_asked()):
            self._save_if_sound()
            where = "there" if self.savings.step == self.done else "what was saved last"
            raise Stopped(f"stopped at step {self.done} of {self.settings.steps}; the same command goes on from {where}", signal)

    def _require_finite(self) -> None:
        """Weights that are not finite are never published, and no milestone. Asked at fixed steps only: what follows changes the result."""
        self._look()
        found = self.pupil.not_finite()
        if self.peers.most(bool(found)):
            raise Setback(self.done - 1, self.done, found or "weights in another process are not finite")

    def _save_if_sound(self) -> None:
        self._look()
        if self.savings.step == self.done:
            self.clock.saved()
        elif self.peers.most(bool(self.pupil.not_finite())):
            self.job.say(
                f"not saved at step {self.done}: weights are not finite; the next steps will show it too, and training then goes back"
            )
        else:
            self._save()

    def _save(self, milestone: bool = False) -> None:
        with self.clock.pause():
            self.savings.save(self.done, self.clock.total(), milestone)
        self.clock.saved()

    def _go_on_from(self, step: int) -> None:
        self.done, self.unseen, self.batches = step, [], self._batches(step)

    def _batches(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        crop, pin = tuple(self.settings.crop or self.train.size), self.device.type == "cuda"
        return crops(self.train, self.settings, crop, step, self.peers.rank, self.peers.count, self.workers, pin)

    def _prepare(self) -> None:
        """What accelerate wraps for devices, precision and processes; `pupil` keeps the bare modules, which share their weights."""
        pupil, prepare, fit = self.pupil, self.accelerator.prepare, self.settings
        self.student = prepare(torch.compile(pupil.student) if fit.compile else pupil.student)
        self.terms = prepare(pupil.terms) if any(p.requires_grad for p in pupil.terms.parameters()) else pupil.terms
        self.guard = Guard((pupil.student, pupil.terms), pupil.optimizer, fit.clip, self.scaler, self.peers.count)

    def _ran(self) -> dict[str, Any]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        peak = torch.cuda.max_memory_allocated(self.device) / 1e6 if self.device.type == "cuda" else None
        parameters = sum(p.numel() for p in self.pupil.student.parameters())
        ran = {"device": name, "processes": self.peers.count, "torch": torch.__version__, "kernels": choices(self.device)}
        return ran | {"peak_mb": peak, "parameters": parameters}
