"""Networks that teach or learn: one row per architecture, and the contract that makes them interchangeable.

A built network takes RGB images, float32 0..255, (B, 3, H, W), normalises them itself and returns a dict of maps (B, C, h, w):
`logits` before enlarging, `head` (what the last classifier sees), `c1`..`c4` (the pyramid, fine to coarse), `aux` where there is one; of
these an `hf` network has as many as are found in it.
It carries `align_corners` (how logits are enlarged), `widths` and `strides` (channels and input pixels per cell of each map).
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from pipeline.artifact import Artifact
from pipeline.errors import BadData
from pipeline.stage import Later
from pipeline.table import Row, Table

if TYPE_CHECKING:
    from torch import Tensor, nn

TABLE = Table(__name__)

Triple = Annotated[tuple[float, float, float], Field(strict=False)]  # YAML and JSON bring lists
LEVELS = ("c1", "c2", "c3", "c4")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, per channel R G B, for values in 0..1


class Model(Row):
    """The contract of a row of this table."""

    multiple: ClassVar[int] = 32  # image height and width must be multiples of this
    head_keys: ClassVar[tuple[str, ...]] = ()  # prefixes of the head's weights: a pretrained start may lack them
    aux_keys: ClassVar[tuple[str, ...]] = ("aux_classifier.",)  # prefixes of what only helps in training: an exported graph lacks it

    aux: Annotated[bool, Later()] = Field(
        False, description="Whether there is an auxiliary head on c3; it helps in training and in teaching, and an exported graph lacks it."
    )

    def taps(self) -> set[str]:
        """The maps it returns, as far as settings tell: a recipe is checked against them before anything runs.

        An hf network may lack `head` and levels of the pyramid, which shows when it is built: see stages/kd/_terms.py.
        """
        return {"logits", "head", *LEVELS} | ({"aux"} if self.aux else set())

    def build(self, classes: int) -> "nn.Module":
        """The network with fresh weights, drawn from torch's global generator: the caller seeds it."""
        raise TypeError(f"{type(self).__name__} does not define build()")

    def completed(self, weights: Path) -> Self:
        """The same row with what lies beside published weights filled in."""
        return self

    def assumed(self, weights: Path) -> str | None:
        """What is taken for granted of published weights because nothing beside them tells: to be said aloud."""
        return None

    def convert(self, state: dict[str, Any]) -> dict[str, Any]:
        """Published names to ours; what the network does not use is dropped. Values (tensors or their headers) pass untouched."""
        return state

    def load(self, module: "nn.Module", source: "Path | dict[str, Tensor]", init: bool = False) -> list[str]:
        """Puts published weights into a built network; returns the keys left as they were: none, or only head_keys with `init`."""
        from stages.weights import load_into

        return load_into(module, source, self.convert, self.head_keys if init else ())

    def folded(self, module: "nn.Module") -> "nn.Module":
        """A copy in eval mode that gives the same maps to rounding with less work; it cannot learn, nor take published weights."""
        from stages.fold import fold_norms, probe

        double = evaluated(module)
        fold_norms(double, lambda: double(probe(double, 2 * self.multiple)))
        return double


def evaluated(module: "nn.Module") -> "nn.Module":
    """A copy that does not learn."""
    import copy

    return copy.deepcopy(module).eval().requires_grad_(False)


def freeze_idle(module: "nn.Module", forward: "Callable[[], dict[str, Tensor]]") -> "dict[str, Tensor]":
    """What `forward` gives; weights that its logits do not depend on ask for no gradient from then on.

    None would ever come, and several processes wait for each that is asked for. Only the graph is looked at: there is no backward, and
    nothing is kept for one.
    """
    import torch

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda x: None, lambda x: None):
        taps = forward()
    seen, nodes = set(), [taps["logits"].grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
    reached = {id(node.variable) for node in seen if hasattr(node, "variable")}
    for parameter in module.parameters():
        if id(parameter) not in reached:
            parameter.requires_grad_(False)
    return taps


def row_of(checkpoint: Artifact) -> Model:
    """The row of a Checkpoint artifact, with its settings."""
    settings = checkpoint.facts["model"]
    return TABLE.row(settings["kind"]).model_validate(settings)


def open_model(checkpoint: Artifact, device: str = "cpu") -> "nn.Module":
    """The network of a Checkpoint artifact, in eval mode. Leaves torch's global generator as it was."""
    import torch

    row = row_of(checkpoint)
    with torch.random.fork_rng(devices=[]):
        module = row.build(len(checkpoint.facts["classes"]))
    row.load(module, checkpoint.file("weights.safetensors"))
    return module.to(device).eval()


def classmap(logits: "Tensor", size: tuple[int, int], align_corners: bool) -> "Tensor":
    """Logits (B, C, h, w) to the class of every pixel, uint8 (B, H, W)."""
    from kernels.upsample_argmax import upsample_argmax

    return upsample_argmax(logits.float(), size, align_corners)


def require_multiple(image: "Tensor", multiple: int) -> None:
    """Refuses heights and widths that the strides do not divide. While a graph is exported they are symbols: nothing to check then."""
    sides = image.shape[2:]
    if all(type(n) is int for n in sides) and any(n % multiple for n in sides):
        (h, w), (up_h, up_w) = sides, (-(-n // multiple) * multiple for n in sides)
        raise BadData(f"image of {h} x {w}: height and width must be multiples of {multiple}; pad or resize to {up_h} x {up_w}")
