"""Any semantic segmentation network that transformers can build, as a teacher to load or a student to train."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from stages.models import MEAN, STD, Model, Triple, evaluated

if TYPE_CHECKING:
    from torch import Tensor, nn


class HuggingFace(Model):
    kind: Literal["hf"]
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="The transformers config with its model_type; `load` takes it from config.json beside the weights.",
    )
    mean: Triple = Field(MEAN, description="Mean of R, G, B after rescale; `load` takes it from preprocessor_config.json.")
    std: Triple = Field(STD, description="Standard deviation of R, G, B after rescale; `load` takes it from preprocessor_config.json.")
    rescale: float = Field(1 / 255, gt=0, description="Factor on values 0..255; `load` takes it from preprocessor_config.json.")

    # the names that transformers gives its heads, and ours
    head_keys: ClassVar[tuple[str, ...]] = (
        *("net.decode_head.", "net.auxiliary_head.", "net.segmentation_head.", "net.head."),
        "aux_classifier.",
    )
    aux_keys: ClassVar[tuple[str, ...]] = ("net.auxiliary_head.", "aux_classifier.")  # of theirs, which nobody reads, and of ours

    def build(self, classes: int) -> "nn.Module":
        from .net import built

        return built(self.settings, classes, self.mean, self.std, self.rescale, self.aux)

    def completed(self, weights: Path) -> Self:
        from stages.weights import config_beside

        from .settings import described, normalisation

        found: dict[str, Any] = {}
        if config := config_beside(weights, "config.json"):
            found["settings"] = described(config)
        if processor := config_beside(weights, "preprocessor_config.json"):
            found |= normalisation(processor, weights)
        chosen = {key: value for key, value in found.items() if key not in self.model_fields_set or not getattr(self, key)}
        if "settings" in chosen:
            from .net import require_together

            require_together(chosen["settings"], weights)
        return type(self).model_validate(self.model_dump() | chosen)

    def assumed(self, weights: Path) -> str | None:
        from stages.weights import config_beside

        if {"mean", "std"} <= self.model_fields_set or config_beside(weights, "preprocessor_config.json"):
            return None
        how = "save the image processor beside the weights, or write mean, std and rescale in the model"
        return f"no preprocessor_config.json beside the weights: mean {self.mean} and std {self.std} are taken; where that is wrong, {how}"

    def load(self, module: "nn.Module", source: "Path | dict[str, Tensor]", init: bool = False) -> list[str]:
        from .net import load_published

        return load_published(module, source, init)

    def folded(self, module: "nn.Module") -> "nn.Module":
        from stages.fold import fold_norms, probe

        double = evaluated(module)
        fold_norms(double, lambda: double.taps(probe(double, double.side)))
        return double
