"""SegFormer b0..b5 (Xie et al. 2021), taking the published Hugging Face checkpoints as they are."""

import re
from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.models import MEAN, STD, Model, Triple, evaluated


class SegFormer(Model):
    kind: Literal["segformer"]
    size: Literal["b0", "b1", "b2", "b3", "b4", "b5"] = Field("b0", description="Encoder size, from 3.7 M (b0) to 84.6 M (b5) parameters.")
    drop_path: float = Field(0.1, ge=0, lt=1, description="Highest probability of skipping a block in training (the first block has 0).")
    align_corners: bool = Field(False, description="How maps are enlarged; every published checkpoint was trained with false.")
    mean: Triple = Field(MEAN, description="Mean of R, G, B, for values in 0..1.")
    std: Triple = Field(STD, description="Standard deviation of R, G, B, for values in 0..1.")

    head_keys: ClassVar[tuple[str, ...]] = ("decode_head.", "aux_classifier.")

    def build(self, classes: int):
        from .net import SegFormerNet

        return SegFormerNet(self.size, classes, self.drop_path, self.align_corners, self.mean, self.std, self.aux)

    def convert(self, state: dict[str, Any]) -> dict[str, Any]:
        return {name: value for key, value in state.items() if (name := our_name(key)) is not None}

    def folded(self, module):
        from .net import FoldedHead

        double = evaluated(module)
        double.decode_head = FoldedHead(double.decode_head)  # it holds the only BatchNorm of what is exported
        return double


# transformers 4 names its modules as we do. transformers 5 has other names in memory (a state dict saved directly holds them), and
# writes those of transformers 4 in save_pretrained.
RENAMED = [
    (r"^(encoder|stages)\.", r"segformer.\1."),  # a bare encoder (SegformerModel)
    (r"^segformer\.stages\.(\d+)\.patch_embeddings\.", r"segformer.encoder.patch_embeddings.\1."),
    (r"^segformer\.stages\.(\d+)\.blocks\.", r"segformer.encoder.block.\1."),
    (r"^segformer\.stages\.(\d+)\.layer_norm\.", r"segformer.encoder.layer_norm.\1."),
    (r"\.attention\.sequence_reduction\.sequence_reduction\.", ".attention.self.sr."),
    (r"\.attention\.sequence_reduction\.layer_norm\.", ".attention.self.layer_norm."),
    (r"\.attention\.q_proj\.", ".attention.self.query."),
    (r"\.attention\.k_proj\.", ".attention.self.key."),
    (r"\.attention\.v_proj\.", ".attention.self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc([12])\.", r".mlp.dense\1."),
    (r"\.layernorm_before\.", ".layer_norm_1."),
    (r"\.layernorm_after\.", ".layer_norm_2."),
    (r"^decode_head\.linear_projections\.", "decode_head.linear_c."),
]


def our_name(key: str) -> str | None:
    if key.startswith("classifier."):  # of an image classifier, as in the ImageNet checkpoints of the encoder
        return None
    for pattern, name in RENAMED:
        key = re.sub(pattern, name, key)
    return key
