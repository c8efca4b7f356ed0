"""The batches of a training run: crop after crop of one endless sequence of samples, from any step on, by worker processes if wanted,
or by the device itself."""

import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import Stillhouse, Stopped
from pipeline.stage import Job
from stages.augment import augment, drawn
from stages.chance import draws, sample_at
from stages.fit import Fit
from stages.peers import Peers
from stages.resident import Resident

AT_ONCE = 16  # images on their way to the device


def crops(
    samples, settings: Fit, crop: tuple[int, int], start: int = 0, rank: int = 0, world: int = 1, workers: int = 0, pin: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """From step `start` on, `settings.accumulate` batches per step, each this process' slice of the global batch."""
    plan = _Plan(settings, start, rank, world)
    if isinstance(samples, Resident):
        return (_made_there(samples, settings, crop, positions) for positions in plan)
    loader = DataLoader(
        Crops(samples, settings, crop),
        batch_sampler=plan,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    return _unwrapped(loader)


class Crops(Dataset):
    """Positions of the sequence -> images uint8 (B, h, w, 3) and labels uint8 (B, h, w), varied as (seed, epoch, sample) say."""

    def __init__(self, samples, settings: Fit, crop: tuple[int, int]):
        self.samples, self.settings, self.crop = samples, settings, crop

    def __getitems__(self, positions: list[int]) -> tuple[Tensor, Tensor] | Stillhouse:
        images = torch.empty((len(positions), *self.crop, 3), dtype=torch.uint8)
        labels = torch.empty((len(positions), *self.crop), dtype=torch.uint8)
        try:
            for i, position in enumerate(positions):
                images.numpy()[i], labels.numpy()[i] = self.one(position)
        except Stillhouse as error:
            return error  # crosses the process boundary as a value: raised there, it would arrive wrapped in a traceback
        return images, labels

    def one(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        seed = self.settings.seed
        epoch, index = sample_at(position, seed, len(self.samples))
        image, label = self.samples[index]
        return augment(image, label, self.crop, self.settings.augment, draws(seed, "augment", epoch, index))


def held(samples, device: torch.device, workers: int, job: Job, peers: Peers) -> Resident:
    """All samples in the memory of the device, read by worker processes if wanted. A wish to stop is heard on the way."""
    resident, count = Resident(samples, device, peers.count if device.type == "cpu" else 1), len(samples)
    for part, (images, labels) in enumerate(whole_images(samples, list(range(count)), AT_ONCE, workers)):
        resident.put(part * AT_ONCE, images, labels)
        if (part + 1) * AT_ONCE < count and (signal := peers.most(job.stop_asked())):
            raise Stopped("stopped while the training images were brought to the device; the same command begins there again", signal)
    job.say(f"the device holds {count:,} training images ({resident.bytes / 1e6:,.1f} MB) and varies them itself")
    return resident


def whole_images(samples, indices: list[int], batch: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels as they are, for validation: uint8 (B, H, W, 3) and (B, H, W). A batch above 1 needs images of one size."""
    lists = [indices[i : i + batch] for i in range(0, len(indices), batch)]
    loader = DataLoader(
        Whole(samples), batch_sampler=lists, num_workers=workers, collate_fn=_as_it_is, worker_init_fn=_leave_signals_to_the_trainer
    )
    return _unwrapped(loader)


class Whole(Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor] | Stillhouse:
        try:
            images, labels = zip(*(self.samples[i] for i in indices), strict=True)
        except Stillhouse as error:
            return error
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))


def faster(settings: Fit, device: torch.device, workers: int) -> str:
    """What to try where training waits for its batches."""
    if settings.data == "device":
        return "try fit.data: host"
    return f"raise fit.workers (now {workers})" + (", or try fit.data: device" if device.type == "cuda" else "")


def names_at(step: int, samples, settings: Fit) -> list[str]:
    """The samples of a step's global batch."""
    return [samples.name(sample_at(p, settings.seed, len(samples))[1]) for p in range(step * settings.batch, (step + 1) * settings.batch)]


def _made_there(resident: Resident, settings: Fit, crop: tuple[int, int], positions: list[int]) -> tuple[Tensor, Tensor]:
    places = [sample_at(position, settings.seed, len(resident)) for position in positions]
    varied = [drawn(resident.size, crop, settings.augment, draws(settings.seed, "augment", *place)) for place in places]
    return resident.crops([index for _, index in places], varied, crop, settings.augment.colour > 0)


class _Plan:
    """Lists of positions: step after step, part after part, this process' slice of each part."""

    def __init__(self, settings: Fit, start: int, rank: int, world: int):
        self.settings, self.start, self.rank, self.world = settings, start, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        size = self.settings.batch // (self.settings.accumulate * self.world)  # images per process and part
        for step in range(self.start, self.settings.steps):
            for part in range(self.settings.accumulate):
                first = step * self.settings.batch + (part * self.world + self.rank) * size
                yield list(range(first, first + size))


def _unwrapped(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in loader:
        if isinstance(batch, Stillhouse):
            raise batch
        yield batch


def _as_it_is(batch):
    return batch


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C reaches every process of the group; a worker that died of it would break the batch the trainer still wants."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
