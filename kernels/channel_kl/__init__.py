"""KL between where two networks look for each class: softmax over the pixels of a channel, not over the classes of a pixel.

With student maps x and teacher maps u, for every image and channel:
    kl_bc = KL(softmax_pixels(u_bc / T) || softmax_pixels(x_bc / T))        without the usual factor T^2
No gradient flows to the teacher. Computed in float32 at least, whatever the maps' type.
"""

from torch import Tensor

from kernels.channel_kl import fused, reference
from kernels.choose import choose


def channel_kl(student: Tensor, teacher: Tensor, *, temperature: float, using: str = "auto") -> Tensor:
    """student, teacher (B, C, H, W) -> (B, C)."""
    for name, maps in (("student", student), ("teacher", teacher)):
        if maps.dim() != 4 or not maps.is_floating_point():
            raise ValueError(f"{name} must be float (B, C, H, W), found {maps.dtype} {tuple(maps.shape)}")
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape: bring one to the other's grid first"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    using, teacher = choose(__name__, using, student), teacher.detach()
    if using == "reference":
        return reference.channel_kl(student, teacher, temperature)
    return fused.channel_kl(student, teacher, temperature, using)
