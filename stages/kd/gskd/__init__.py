"""GSKD: the student sees the same likeness between pixels of all classes of an image as the teacher. Stands beside any other loss.

"Global Structural Knowledge Distillation" (IEEE Access 2025; released code MaryAhn/GSKD@641ddeb). Matched are cosines between
features `head` (before the last classifier) at sampled pixels of one image, on the teacher's grid. Of every class k that has pixels
which the teacher gets right, N of these are drawn; where there are fewer, all, and the rest from other classes' right pixels. With
f_i the teacher's feature at point i and g_i = MLP(the student's), both divided by their norms:
    V^t_ij = f_i . f_j,   V^s_ij = g_i . g_j                                                (M, M), M = N x classes of the image
Every row's relations i -> j (j != i) are dealt at random, the same for both networks, into descriptors of S from each row:
    gskd = T^2 * mean over images and descriptors d of KL(softmax_d(V^t / T) || softmax_d(V^s / T)),   a sum over d's relations
       in one pass without gathering:  KL_d = A / (T Z_t) - ln Z_t + ln Z_s
       with Z_t = sum_d exp(V^t / T), Z_s = sum_d exp(V^s / T), A = sum_d exp(V^t / T) (V^t - V^s)

Sourced from the code: sampling, cosines, dealing, S as many as the image has classes, tau^2 KL. The released term has no gradient (it
gathers features under no_grad, so neither student nor projector learns by it), mixes up channels and pixels (a reshape where a
permute is due), counts the last image only, and divides by the descriptor's length. Here is the algorithm of the paper without
these: our reconstruction are the KL as a true sum, the mean over images, masking the diagonal, an MLP with LayerNorm on the sampled
points (50 times less work than convolutions over the map, and no BatchNorm), the temperature and the weight. An image with
fewer than two such classes, or fewer than 2 S points, adds 0.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stages.kd import Loss, filled

PRESETS = {"mild": {"temperature": 1.0}, "sharp": {"temperature": 0.2}}
MOST = 32  # classes of one image that are sampled; of more (ADE20K has 150) as many are drawn


class Gskd(Loss):
    """The weight is for the mean over images and descriptors of a KL that is summed over the relations of a descriptor."""

    kind: Literal["gskd"]
    version: ClassVar[int] = 2

    preset: Literal["mild", "sharp"] = Field(
        "mild", description="sharp: temperature 0.2, at which like pixels count more and the gradient is about twice as large."
    )
    weight: float = Field(10.0, gt=0, description="Factor of the term beside the others.")
    temperature: float = Field(1.0, ge=0.05, description="Of the softmax over cosines (no unit); the term is multiplied by its square.")
    per_class: int = Field(8, ge=2, description="Pixels drawn of each class of an image.")
    group: int | None = Field(
        None,
        ge=0,
        description="Relations of each pixel in one descriptor; null takes as many as the image has classes, 0 all, without drawing.",
    )
    mask_diagonal: bool = Field(True, description="Leave out each pixel's likeness to itself, which is 1 in both networks.")

    @model_validator(mode="before")
    @classmethod
    def from_preset(cls, given: Any) -> Any:
        return filled(given, PRESETS, "mild")

    def misfits(self, classes):
        sampled = min(classes or MOST, MOST)
        points = self.per_class * sampled
        if not self.group or points >= 2 * self.group:
            return []
        most = f"of {sampled} classes, {self.per_class} of each, there are {points} at most"
        return [(("group",), f"{self.group} needs {2 * self.group} points of an image, and {most}: lower group, or raise per_class")]

    def reads(self):
        return {"head"}

    def build(self, pair):
        from .loss import Structure

        return Structure(
            (pair.student["head"], pair.teacher["head"]),
            pair.classes,
            weight=self.weight,
            temperature=self.temperature,
            per_class=self.per_class,
            group=self.group,
            mask_diagonal=self.mask_diagonal,
        )
