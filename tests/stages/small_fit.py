"""A tiny net, a few samples in memory and a job that stops when told: what the tests of the training loop share."""

import hashlib
import json
import signal

import numpy as np
import torch
from torch import nn

from stages.fit import Fit
from stages.kd import TABLE, Pair
from stages.kd._terms import Terms
from stages.loop import fit

CLASSES = 3


class Net(nn.Module):
    """Two convolutions with everything that makes resuming hard: BatchNorm buffers, dropout, a counter."""

    align_corners = False
    widths = {"logits": CLASSES, "head": 4}

    def __init__(self, dropout=0.2):
        super().__init__()
        self.first, self.norm, self.drop = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Dropout(dropout)
        self.classifier = nn.Conv2d(4, CLASSES, 1)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 127.0), persistent=False)

    def forward(self, image):
        head = self.drop(self.norm(self.first((image - self.mean) / 60)).relu())
        return {"logits": self.classifier(head), "head": head}


class Memory:
    """Samples in memory: the class is the brightest channel, so that there is something to learn."""

    classes, colours, size = ["red", "green", "blue"], [[255, 0, 0], [0, 255, 0], [0, 0, 255]], (16, 24)

    def __init__(self, n=7, seed=0):
        rng = np.random.RandomState(seed)
        self.labels = rng.randint(0, CLASSES, (n, 2, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
        self.images = (np.eye(3)[self.labels] * 80 + rng.randint(60, 160, (n, 16, 24, 3))).astype(np.uint8)
        self.labels[:, :2, :2] = 255

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]

    def name(self, i):
        return f"street_{i}"


class Job:
    """Stops when `stop_at` questions have been asked."""

    rehearsing = False

    def __init__(self, folder, stop_at=None, number=signal.SIGINT):
        self.out, self.state = folder / "out", folder / "state"
        self.said, self.shown, self.asked, self.stop_at, self.number = [], [], 0, stop_at, number
        self.out.mkdir(parents=True, exist_ok=True)

    def say(self, text):
        self.said.append(text)

    def progress(self, done, total, **figures):
        self.shown.append((done, total, figures))

    def stop_asked(self):
        self.asked += 1
        return self.number if self.stop_at is not None and self.asked > self.stop_at else 0


def forget_accelerate():
    """One process trains once in real life; in tests each training starts anew."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    torch.set_num_threads(1)
    for one in (AcceleratorState, GradientState, PartialState):
        one._reset_state()


BASE = {"steps": 12, "batch": 4, "lr": 0.01, "crop": [16, 16], "validate_every": 5, "seed": 3, "clip": 1.0}


def settings(**changes) -> Fit:
    return Fit.model_validate(BASE | changes)


def rows(*kinds):
    return [TABLE.row(k["kind"]).model_validate(k) for k in kinds]


def terms_of(*losses) -> Terms:
    return Terms(*rows({"kind": "ce"}), rows(*losses), Pair(Net.widths, Net.widths, CLASSES), 0)


def trained(folder, fit_settings=None, losses=(), teacher=None, train=None, val=None, stop_at=None, **net):
    torch.manual_seed(1)
    job = Job(folder, stop_at)
    done = fit(Net(**net), terms_of(*losses), train or Memory(), val or Memory(5, 1), fit_settings or settings(), job, teacher)
    return done, job


def digest(weights) -> str:
    return hashlib.sha256(b"".join(k.encode() + v.contiguous().numpy().tobytes() for k, v in sorted(weights.items()))).hexdigest()


def teacher_net():
    torch.manual_seed(77)
    return Net()


KD = [{"kind": "pixel", "temperature": 2.0}, {"kind": "cwd"}]


def without_batchnorm(processes, where, job) -> str:
    """Trains what does not depend on how a batch is divided; the loss curve, rounded, and the mIoU."""
    data = Memory()
    data.labels[data.labels == 255] = 0
    torch.manual_seed(1)
    net = Net(dropout=0.0)
    net.norm = nn.Identity()
    plain = {"scale": [1, 1], "flip": 0.5, "colour": 0.1}  # no padding: a mean over all pixels is the mean of the parts' means
    s = settings(clip=None, ema=0.5, augment=plain, processes=processes, data=where)
    done = fit(net, terms_of(), data, Memory(5, 1), s, job)
    return json.dumps([[round(p["loss"], 4) for p in done.curves["train"]], done.curves["val"]])
