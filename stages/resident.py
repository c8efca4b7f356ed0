"""Holds a whole split in the memory of the device and makes the crops there, so that no GPU waits for what a CPU prepares.

What happens to a sample is drawn as ever (stages/augment.py), and worked into tables on the host (stages/resample.py); they go to
the device in one copy per batch, and nothing comes back. Labels are those of the host; so are images, but for rounding in rare crops
(stages/resample.py says which).
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import BadRecipe, Missing
from stages.augment import FILL, IGNORE, Variation, tones
from stages.machine import free_bytes
from stages.resample import BITS, Axis, axis

SHARE = 0.5  # of the device's free memory, measured with the networks on it: steps need the rest


class Resident:
    """Stands for the samples it holds: `images` uint8 (N, 3, H, W), which is quicker to resize than NHWC, and `labels` uint8 (N, H, W)."""

    def __init__(self, samples, device: torch.device, sharers: int = 1):
        """`sharers`: processes that each hold the split in the same memory."""
        if samples.size is None:
            raise BadRecipe("fit.data: device needs images of one size, and these keep their own: set data.size, or write data: host")
        self.samples, self.size, shape = samples, samples.size, (len(samples), *samples.size)
        self.bytes = 4 * int(np.prod(shape))
        _require_room(self.bytes, shape, device, sharers)
        count, height, width = shape
        self.images = torch.empty((count, 3, height, width), dtype=torch.uint8, device=device)
        self.labels = torch.empty(shape, dtype=torch.uint8, device=device)
        self.fill = torch.from_numpy(FILL).to(device)[:, None, None]

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, i: int) -> str:
        return self.samples.name(i)

    def put(self, first: int, images: Tensor, labels: Tensor) -> None:
        """Samples `first` and following, as samples give them: images NHWC."""
        self.images[first : first + len(images)] = images.to(self.images.device).permute(0, 3, 1, 2)
        self.labels[first : first + len(labels)] = labels

    def crops(self, indices: list[int], varied: list[Variation], crop: tuple[int, int], recolour: bool) -> tuple[Tensor, Tensor]:
        """images uint8 (B, h, w, 3) and labels uint8 (B, h, w), on the device. Nothing here waits for it."""
        height, width = self.size
        rows = axis([v.rows for v in varied], height, crop[0])
        columns = axis([v.columns for v in varied], width, crop[1], [v.flip for v in varied])
        brightness, contrast, saturation = np.array([v.colour for v in varied]).T[..., None]
        colours = np.float32(saturation).view(np.int32), np.int32(tones(brightness, contrast))
        which, *moved, saturation, toned = _sent([np.array(indices, np.int32), *rows, *columns, *colours], self.images.device)
        down, across = Axis(*moved[:3]), Axis(*moved[3:])
        seen = int((rows.first.max(1) - rows.first.min(1)).max()) + rows.weights.shape[1]  # source rows that any of these crops needs
        pixels = _resized(self.images, which, down, across, seen)
        if recolour:
            pixels = _recoloured(pixels, saturation.view(torch.float32), toned.to(torch.uint8))
        labels = _columns(self.labels[which[:, None], down.nearest], across.nearest.clamp_min(0))
        if rows.nearest.min() < 0 or columns.nearest.min() < 0:
            beyond = (down.nearest < 0)[:, :, None] | (across.nearest < 0)[:, None]
            pixels, labels = torch.where(beyond[:, None], self.fill, pixels), labels.masked_fill(beyond, IGNORE)
        return pixels.permute(0, 2, 3, 1).contiguous(), labels


def _require_room(need: int, shape: tuple[int, int, int], device: torch.device, sharers: int) -> None:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_bytes()
    if free is not None and need * sharers > SHARE * free:
        count, height, width = shape
        each = f" in each of {sharers} processes" if sharers > 1 else ""
        raise Missing(
            f"fit.data: device needs {_mb(need)}{each} for {count:,} training images of {height} x {width}, and {_mb(SHARE * free)} may be "
            f"used for them, {SHARE:.0%} of the memory that is free on the device: write data: host, or lower data.size"
        )


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def _sent(tables: Iterable[np.ndarray], device: torch.device) -> list[Tensor]:
    """Tables of int32, in one copy."""
    flat = torch.from_numpy(np.concatenate([table.ravel() for table in tables]))
    flat = (flat.pin_memory() if device.type == "cuda" else flat).to(device, non_blocking=True)
    return [part.view(table.shape) for part, table in zip(flat.split([table.size for table in tables]), tables, strict=True)]


def _resized(images: Tensor, which: Tensor, rows: Axis, columns: Axis, seen: int) -> Tensor:
    """uint8 (B, 3, h, w): along each row first and rounded to whole values, then along each column, as Pillow does."""
    last_row, last_column = images.shape[2] - 1, images.shape[3] - 1
    top = rows.first.amin(1, keepdim=True)  # (B, 1)
    batch, channel = torch.arange(len(which), device=top.device)[:, None, None], torch.arange(3, device=top.device)[:, None]
    lines = (top + torch.arange(seen, device=top.device)).clamp_max(last_row)[:, None]  # (B, 1, seen)
    source = images[which[:, None, None], channel, lines]  # (B, 3, seen, W)
    wide = _weighted(lambda tap: _columns(source, (columns.first + tap).clamp_max(last_column)), columns.weights[:, :, None, None])
    return _weighted(lambda tap: wide[batch, channel, (rows.first - top + tap)[:, None]], rows.weights[:, :, None, :, None])


def _columns(rows: Tensor, picks: Tensor) -> Tensor:
    """(B, ..., n, W) and picks (B, w) -> (B, ..., n, w)."""
    shape = (len(picks), *(1 for _ in rows.shape[1:-1]), picks.shape[-1])
    return rows.gather(-1, picks.long().view(shape).expand(*rows.shape[:-1], -1))


def _weighted(pick, weights: Tensor) -> Tensor:
    """The mean over the taps, `weights` (B, K, ...); `pick(tap)` gives uint8."""
    total = pick(0) * weights[:, 0]  # int32: at most 255 x 2^22
    for tap in range(1, weights.shape[1]):
        total += pick(tap) * weights[:, tap]
    return ((total + (1 << (BITS - 1))) >> BITS).to(torch.uint8)


def _recoloured(pixels: Tensor, saturation: Tensor, toned: Tensor) -> Tensor:
    """`saturation` (B, 1); `toned` (B, 256): what brightness and contrast make of each value."""
    whole = pixels.int()
    red, green, blue = whole.unbind(1)
    grey = ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16)[:, None]  # Pillow's luma
    mixed = (saturation[:, :, None, None] * (whole - grey) + grey).clamp(0, 255).long()  # beyond 1: away from grey
    return toned.gather(1, mixed.flatten(1)).view(pixels.shape)
