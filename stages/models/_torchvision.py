"""Published torchvision weights by our names, which are theirs but for what we leave out."""

from typing import Any

UNUSED = ("backbone.fc.", "backbone.features.18.")  # the image classifier, and MobileNetV2's last convolution before it


def ours(state: dict[str, Any], dropped: tuple[str, ...] = ()) -> dict[str, Any]:
    """Of a segmentation network (backbone.*, classifier.*, aux_classifier.*), or of an image classifier, which gives a backbone alone."""
    if not any(key.startswith("backbone.") for key in state):
        state = {f"backbone.{key}": value for key, value in state.items() if not key.startswith("classifier.")}
    return {key: value for key, value in state.items() if not key.startswith(UNUSED + dropped)}
