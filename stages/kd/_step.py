"""What every loss of one training step sees: the taps of both networks, the labels, and maps that are computed once for all."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate

from kernels.label_histogram import cell_sizes, label_histogram
from kernels.upsample_ce_kl import upsample_ce_kl
from kernels.upsample_confidence import Sureness, upsample_confidence
from stages.kd._meet import on_grid

IGNORE = 255


class Step:
    """`maps` is the union of what the methods declared; asking for another map is an error of the method."""

    def __init__(
        self,
        student: dict[str, Tensor],
        teacher: dict[str, Tensor] | None,
        labels: Tensor,
        *,
        maps: Iterable[tuple[str, float]] = (),
        progress: float = 0.0,
        align_corners: bool = False,
        teacher_align_corners: bool | None = None,
    ):
        self.student = student  # {"logits": (B, C, h, w), "aux"?, "head", "c1" .. "c4"}
        self.teacher = teacher and {tap: value.detach() for tap, value in teacher.items()}  # on its own grids; None without one
        self.labels = labels  # (B, H, W) uint8, ignore 255
        self.progress = progress  # 0 at the first step, just below 1 at the last
        self.align_corners = align_corners  # how the student's logits come to the labels' grid
        self.teacher_align_corners = align_corners if teacher_align_corners is None else teacher_align_corners
        self._kl_of = {temperature: None for name, temperature in sorted(maps) if name == "kl"}
        self._made: dict[tuple, Any] = {}  # what several methods may ask for, by what was asked

    @cached_property
    def valid(self) -> Tensor:
        """(B, H, W) bool: pixels with a label."""
        return self.labels != IGNORE

    @cached_property
    def count(self) -> Tensor:
        """How many pixels have a label, 0-d; at least 1, to divide by."""
        return self.valid.sum().clamp(min=1)

    def mean(self, per_pixel: Tensor) -> Tensor:
        """The mean of a (B, H, W) map over the pixels with a label; 0 where there is none."""
        return per_pixel.masked_fill(~self.valid, 0.0).sum() / self.count

    @cached_property
    def ce(self) -> Tensor:
        """(B, H, W): cross-entropy of the student, 0 at ignored pixels. Made together with the first declared kl map."""
        temperature = next(iter(self._kl_of), None)
        made = self._maps(temperature)
        if temperature is not None:
            self._kl_of[temperature] = made.kl
        return made.ce

    def kl(self, temperature: float) -> Tensor:
        """(B, H, W): KL of teacher to student, both at this temperature, at every pixel; without the factor T^2."""
        if temperature not in self._kl_of:
            raise KeyError(f"kl at temperature {temperature} was asked for but not declared; maps() declared {sorted(self._kl_of)}")
        if temperature == next(iter(self._kl_of)):
            self.ce  # noqa: B018 - one call makes both
        elif self._kl_of[temperature] is None:
            self._kl_of[temperature] = self._maps(temperature).kl
        return self._kl_of[temperature]

    @cached_property
    def aux_ce(self) -> Tensor:
        """(B, H, W): cross-entropy of the student's auxiliary head."""
        return upsample_ce_kl(self.student["aux"], None, self.labels, align_corners=self.align_corners, ignore=IGNORE).ce

    def sureness(self, net: str, tap: str = "logits") -> Sureness:
        """How sure the "student" or the "teacher" is of each label pixel, by its logits or its auxiliary ones; constants."""
        taps, align = (self.student, self.align_corners) if net == "student" else (self.teacher, self.teacher_align_corners)
        return self._once(("sureness", net, tap), lambda: upsample_confidence(taps[tap], self.labels, align_corners=align, ignore=IGNORE))

    def labels_at(self, size: tuple[int, int]) -> Tensor:
        """(B, h, w) uint8: the label in the middle of each cell of a smaller grid."""
        return self._once(("labels", *size), lambda: interpolate(self.labels[:, None], tuple(size), mode="nearest-exact")[:, 0])

    def histogram(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """How many label pixels of each class lie in each cell of a smaller grid, (B, C, h, w), and how many lie there at all, (h, w)."""

        def make():
            counts = label_histogram(self.labels, self.student["logits"].shape[1], tuple(size), ignore=IGNORE)
            return counts, cell_sizes(tuple(size), tuple(self.labels.shape[-2:]), self.labels.device)

        return self._once(("histogram", *size), make)

    def _once(self, asked: tuple, make: Callable[[], Any]) -> Any:
        if asked not in self._made:
            self._made[asked] = make()
        return self._made[asked]

    def _maps(self, temperature: float | None):
        teacher = None
        if temperature is not None:
            teacher = self.teacher["logits"]
            if self.teacher_align_corners != self.align_corners:  # the kernel knows one rule: bring the teacher to the labels by its own
                teacher = on_grid(teacher, self.labels.shape[-2:], self.teacher_align_corners)
        return upsample_ce_kl(
            self.student["logits"],
            teacher,
            self.labels,
            temperature=temperature or 1.0,
            align_corners=self.align_corners,
            ignore=IGNORE,
        )
