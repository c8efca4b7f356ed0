"""What every loss of one training step sees: the taps of both networks, the labels, and maps that are computed once for all."""

from collections.abc import Iterable
from functools import cached_property

from torch import Tensor
from torch.nn.functional import interpolate

from kernels.upsample_ce_kl import upsample_ce_kl

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
        self._teacher_align = align_corners if teacher_align_corners is None else teacher_align_corners
        self._kl_of = {temperature: None for name, temperature in sorted(maps) if name == "kl"}

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

    def aux_ce(self) -> Tensor:
        """(B, H, W): cross-entropy of the student's auxiliary head."""
        return upsample_ce_kl(self.student["aux"], None, self.labels, align_corners=self.align_corners, ignore=IGNORE).ce

    def _maps(self, temperature: float | None):
        teacher = None
        if temperature is not None:
            teacher = self.teacher["logits"]
            if self._teacher_align != self.align_corners:  # the kernel knows one rule: bring the teacher to the labels by its own
                teacher = interpolate(teacher.float(), self.labels.shape[-2:], mode="bilinear", align_corners=self._teacher_align)
        return upsample_ce_kl(
            self.student["logits"],
            teacher,
            self.labels,
            temperature=temperature or 1.0,
            align_corners=self.align_corners,
            ignore=IGNORE,
        )


def same_grid(student: Tensor, teacher: Tensor, align_corners: bool = False) -> Tensor:
    """The one place where a student's map (B, C, h, w) is brought to the size of the teacher's, which stays as it is."""
    if student.shape[-2:] == teacher.shape[-2:]:
        return student
    return interpolate(student, teacher.shape[-2:], mode="bilinear", align_corners=align_corners)
