"""F13: losses, gradients, buffers or weights that are not finite, and memory that runs out: skipped, undone or explained, never published.

Skipped up to three in a row, then back to a milestone with half the learning rate, twice at most, then exit 6 with step and files.
Where training goes on, it is also stopped again and again, and must end in the same bytes.
"""

import json
import random

from common import ROOT  # noqa: F401 (puts the project on the path)

QUICK = 8
COVERS = ("pipeline", "stages", "kernels")
NAN, INF = float("nan"), float("inf")
STEPS, MILESTONE = 14, 5
HARMS = ("loss", "gradient", "buffer")
PATTERNS = ("once", "three", "four", "eight", "always")
SETTINGS = ({}, {"ema": 0.9, "clip": None}, {"optimizer": "sgd", "accumulate": 2}, {"precision": "bf16", "validate_every": 5})
MEMORY = ("device", "Python", "torch", "numpy", "while saving")
WEIGHTS = ("at a milestone", "at the end", "always at the end", "from the start")
PUBLISHED = ("weights at publishing", "moments", "while stopped", "average", "input", "curves")


def cases():
    steps = [f"{harm} {pattern}" for pattern in PATTERNS for harm in HARMS]
    return [
        *steps,
        *(f"weights {when}" for when in WEIGHTS),
        *(f"memory: {how}" for how in MEMORY),
        *(f"other: {what}" for what in PUBLISHED),
    ]


def check(case, place):
    world = World(case, place)
    try:
        return {"interrupted": getattr(world, world.kind)()}
    finally:
        world.end()


def summary(figures):
    return True, f"{sum(f['interrupted'] for f in figures)} interruptions on the way"


class World:
    """Training on a tiny net in this process, spoilt as the case says; everything patched is put back."""

    def __init__(self, case, place):
        import small_fit

        self.small, self.place, self.chance = small_fit, place, random.Random(f"F13 {case}")
        first, _, self.how = case.partition(" ")
        self.kind, self.harm = (first.rstrip(":"), "") if first.rstrip(":") in ("weights", "memory", "other") else ("steps", first)
        self.patched = []
        self.settings = small_fit.settings(steps=STEPS, **self.chance.choice(SETTINGS))
        self.k = self.chance.randrange(1, STEPS - 4)
        from stages import setbacks

        self.patch(setbacks, "MILESTONE_STEPS", MILESTONE)

    def patch(self, owner, name, value):
        self.patched.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def end(self):
        for owner, name, value in reversed(self.patched):
            setattr(owner, name, value)

    # -- steps

    def steps(self):
        self._spoil(self._bad)
        if self.how == "always":
            return self._ends_diverged(f"steps {self.k + 1} to {self.k + 4} are not finite, after going back 2 times", self.k)
        done, said = self._trained("whole")
        events = [(e["event"], e["step"]) for e in done.curves["events"]]
        skipped = {"once": 1, "three": 3, "four": 4, "eight": 4}[self.how]
        expected = [("skipped", self.k + i + 1) for i in range(skipped)]
        if skipped > 3:
            expected.append(("went back", self.k + 4))
            target = max(0, self.k - self.k % MILESTONE)
            assert done.curves["events"][4]["to"] == target and done.curves["events"][4]["lr_factor"] == 0.5, done.curves["events"]
            assert any(f"Going back to step {target}" in line for line in said), said
        if self.how == "eight":  # the second time too
            expected += [("skipped", self.k + i + 1) for i in range(4)] + [("went back", self.k + 4)]
        assert events == expected, f"{events} instead of {expected}"
        names = self._names(self.k)
        assert done.curves["events"][0]["samples"] == names and any(", ".join(names) in line for line in said), said
        self._sound(done)
        return self._interrupted(done)

    def _bad(self, round, step):
        if self.how in ("once", "three"):
            return self.k <= step < self.k + (1 if self.how == "once" else 3)
        return step >= self.k and round < {"four": 1, "eight": 2, "always": 9}[self.how]

    def _spoil(self, bad):
        from stages.loop import Loop

        original, harm, hooks = Loop._terms, self.harm, []

        def spoilt(loop, images, labels):
            while hooks:
                hooks.pop().remove()
            terms, task = original(loop, images, labels)
            student = loop.pupil.student
            if not bad(loop.setbacks.round, loop.done):
                return terms, task
            if harm == "loss":
                terms = {name: term * NAN for name, term in terms.items()}
            elif harm == "gradient":
                hooks.append(student.first.weight.register_hook(lambda grad: grad * INF))
            else:
                student.norm.running_var.data[1] = NAN
            return terms, task

        self.patch(Loop, "_terms", spoilt)

    # -- weights

    def weights(self):
        from stages.loop import Loop

        original, how = Loop.report_if_due, self.how
        at = {"at a milestone": MILESTONE, "from the start": 0}.get(how, STEPS)
        if how == "from the start":
            net = self._net()
            net.first.bias.data[0] = NAN
            return self._ends_diverged("weights of the student are not finite, the first is first.bias. Lower", None, net)

        def spoilt(loop):
            original(loop)
            if loop.done == at and (loop.setbacks.round == 0 or how.startswith("always")):
                loop.pupil.result.first.weight.data[0] = INF

        self.patch(Loop, "report_if_due", spoilt)
        if how.startswith("always"):
            return self._ends_diverged("not finite, the first is first.weight, after going back 2 times", at - 1)
        done, said = self._trained("whole")
        assert [(e["event"], e["step"]) for e in done.curves["events"]] == [("went back", at)], done.curves["events"]
        assert any("the first is first.weight" in line for line in said), said
        self._sound(done)
        return self._interrupted(done)

    # -- memory

    def memory(self):
        import torch

        from pipeline.errors import Missing
        from stages.loop import Loop
        from stages.savings import states

        error = {
            "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "torch": RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
            "numpy": _numpy_error(),
        }.get(self.how, MemoryError())
        whole, _ = self._trained("whole")
        original, at = Loop.learn, self.k

        def full(loop):
            if loop.done == at:
                raise error
            original(loop)

        if self.how == "while saving":
            self.patch(states, "save", lambda *given: (_ for _ in ()).throw(error))
        else:
            self.patch(Loop, "learn", full)
        try:
            self._trained("x")
            raise AssertionError("it went on without memory")
        except Missing as told:
            text = str(told)
        for word in ("too little memory", "fit.batch 4", "crops of 16 x 16", "lower fit.batch or fit.crop, raise fit.accumulate"):
            assert word in text, text
        self.end()
        self.__init__(f"memory: {self.how}", self.place)
        done, _ = self._trained("x")
        assert self._bytes(done) == self._bytes(whole), "other bytes after memory had run out"
        return 1

    # -- what else must never come out

    def other(self):
        return getattr(self, "_" + self.how.replace(" ", "_"))()

    def _weights_at_publishing(self):
        """Behind the loop's back, between its last look and the file."""
        import torch

        from pipeline.errors import Diverged
        from stages.weights import save_checkpoint

        done, _ = self._trained("whole")
        for value in (NAN, INF, -INF):
            out = self.place / f"out {value}"
            out.mkdir()
            bad = done.weights | {"first.weight": torch.full_like(done.weights["first.weight"], value)}
            try:
                save_checkpoint(out, bad)
                raise AssertionError(f"{value} was published")
            except Diverged as told:
                assert "first.weight" in str(told) and not list(out.iterdir())
        return 0

    def _moments(self):
        """Moments of the optimiser that are not finite spoil the weights by a finite gradient: found, and undone by going back."""
        from stages.loop import Loop

        original, at = Loop.learn, self.k

        def spoilt(loop):
            original(loop)
            if loop.done == at and loop.setbacks.round == 0:
                for kept in loop.pupil.optimizer.state.values():
                    for name in kept.keys() & {"exp_avg", "momentum_buffer"}:
                        kept[name].fill_(INF)

        self.patch(Loop, "learn", spoilt)
        done, _ = self._trained("whole")
        assert "went back" in [e["event"] for e in done.curves["events"]], done.curves["events"]
        self._sound(done)
        return 0

    def _while_stopped(self):
        """Stopped right after each of the bad steps: no state holds a number that is not finite."""
        from pipeline.errors import Stopped

        self.harm, self.how = "buffer", "three"
        self._spoil(self._bad)
        for stop in range(self.k, self.k + 4):
            try:
                self._trained(f"stop{stop}", stop_at=stop)
            except Stopped:
                self._finite_states(f"stop{stop}")
        return 4

    def _average(self):
        """The averaged weights are the result: they must not take in what is skipped."""
        self.settings = self.settings.model_copy(update={"ema": 0.5})
        self.harm, self.how = "buffer", "three"
        self._spoil(self._bad)
        done, _ = self._trained("whole")
        self._sound(done)
        return self._interrupted(done)

    def _input(self):
        """A sample that the network answers with infinity: every batch with it is skipped, in every epoch."""
        import numpy as np

        class Allergic(self.small.Net):
            def forward(self, image):
                bad = (image == 7).all(dim=(1, 2, 3)).any()
                return {tap: value * INF if bad else value for tap, value in super().forward(image).items()}

        class Poisoned(self.small.Memory):
            def __getitem__(self, i):
                image, label = super().__getitem__(i)
                return (np.full_like(image, 7), label) if i == 5 else (image, label)

        self.patch(self.small, "Memory", Poisoned)
        plain = {"scale": (1.0, 1.0), "flip": 0.5, "colour": 0.0}  # no padding, no change of its colour
        self.settings = self.settings.model_copy(update={"augment": self.settings.augment.model_copy(update=plain), "ema": None})
        done, _ = self._trained("whole", net=Allergic)
        skipped = [e["samples"] for e in done.curves["events"] if e["event"] == "skipped"]
        assert skipped and all("street_5" in samples for samples in skipped), done.curves["events"]
        self._sound(done)
        return self._interrupted(done, net=Allergic)

    def _curves(self):
        """Half of all steps are skipped, and the windows of the curves hold several steps."""
        from stages.pupil import Curves

        self.patch(Curves, "POINTS", 4)
        self.harm = "loss"
        self._spoil(lambda round, step: step % 4 in (1, 2))
        done, _ = self._trained("whole")
        self._sound(done)
        assert [p["step"] for p in done.curves["train"]] == [3, 6, 9, 12, 14], done.curves["train"]
        return self._interrupted(done)

    # -- what all share

    def _net(self, kind=None):
        import torch

        torch.manual_seed(1)
        return (kind or self.small.Net)()

    def _trained(self, name, stop_at=None, net=None):
        from stages.loop import fit

        self.small.forget_accelerate()
        job = self.small.Job(self.place / name, stop_at)
        module = net if net is not None and not isinstance(net, type) else self._net(net)
        done = fit(module, self.small.terms_of(), self.small.Memory(), self.small.Memory(5, 1), self.settings, job)
        return done, job.said

    def _interrupted(self, whole, net=None):
        """Stopped after a random number of steps, again and again."""
        from pipeline.errors import Stopped

        done, interruptions = None, 0
        while done is None:
            try:
                done, _ = self._trained("interrupted", self.chance.randint(3, 8), net)
            except Stopped:
                interruptions += 1
                self._finite_states("interrupted")
                assert interruptions < 200, "it never comes to an end"
        assert self._bytes(done) == self._bytes(whole), f"other bytes after {interruptions} interruptions"
        return interruptions

    def _ends_diverged(self, text, step, net=None):
        from pipeline.errors import Diverged

        for name in ("x", "x"):  # the same again comes to the same end
            try:
                self._trained(name, net=net)
                raise AssertionError("it was published")
            except Diverged as told:
                assert told.code == 6 and text in str(told), str(told)
                assert step is None or ", ".join(self._names(step)) in str(told), str(told)
        assert not list((self.place / "x" / "out").iterdir())
        self._finite_states("x")
        return 1

    def _finite_states(self, name):
        from safetensors.torch import load_file

        for file in (self.place / name / "state").glob("*/tensors.safetensors"):
            bad = [key for key, value in load_file(file).items() if value.is_floating_point() and not value.isfinite().all()]
            assert not bad, f"{file.parent.name} holds {bad}"

    def _names(self, step):
        from stages.batches import names_at

        return sorted(set(names_at(step, self.small.Memory(), self.settings)))

    @staticmethod
    def _sound(done):
        assert all(value.isfinite().all() for value in done.weights.values()), "weights that are not finite"
        json.dumps(done.curves, allow_nan=False)

    def _bytes(self, done):
        return self.small.digest(done.weights), json.dumps(done.curves)


def _numpy_error():
    import numpy as np

    try:
        np.empty(1 << 60, np.uint8)
    except MemoryError as error:
        return error
    raise AssertionError("this machine has an exbibyte of memory")
