"""What a transformers config from elsewhere may say: sizes and choices of a network, never code, kernels, files or other models."""

import json
import math
import re
from typing import Any

from pipeline.errors import BadData, BadRecipe, Refused

# What a published config says that does not describe the network: names of classes (the data's count), of files, of code (never run).
DROPPED = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "id2label",
    "label2id",
    "num_labels",
    "torch_dtype",
    "transformers_version",
    "trust_remote_code",
)
FETCHING = {  # what makes transformers load code, kernels, weights or files besides the ones that were named
    "adapters",
    "base_model_name_or_path",
    "custom_pipelines",
    "extra_config_files",
    "extra_files",
    "gguf_file",
    "kernel_config",
    "name_or_path",
    "peft_config",
    "pretrained_model_name_or_path",
    "quantization_config",
    "use_kernels",
}
PLAIN = {"eager", "sdpa"}  # ways of computing attention that come with torch
BACKBONE = re.compile(r"[A-Za-z0-9_.]{1,80}$")  # a name inside timm; one with / or : is fetched
DEEPEST, MOST, LONGEST, LARGEST = 8, 20_000, 1000, 10**7  # levels, values, characters of a text, size of a number


def described(config: dict[str, Any], depth: int = DEEPEST) -> dict[str, Any]:
    """The config without what does not describe the network, at every level."""
    if depth < 0:
        raise BadData("config.json is nested deeper than any network is described")
    kept = {key: value for key, value in config.items() if key not in DROPPED}
    return {key: described(value, depth - 1) if isinstance(value, dict) else value for key, value in kept.items()}


def check(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, when they may be given to transformers; pretrained backbones are switched off at every level."""
    if settings.get("backbone") and not settings.get("backbone_config") and settings.get("model_type") != "timm_backbone":
        raise BadRecipe(f"model.settings.backbone: {settings['backbone']!r} would have to be fetched; write its backbone_config instead")
    return _checked(settings, "model.settings", DEEPEST, [MOST])


def normalisation(processor: dict[str, Any], where: Any) -> dict[str, Any]:
    """Our mean, std and rescale for what an image processor of transformers does."""
    from stages.models import MEAN, STD

    if processor.get("do_flip_channel_order"):
        raise BadData(f"{where}: preprocessor_config.json asks for BGR images (do_flip_channel_order), which the hf row does not offer")
    rescale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if processor.get("do_normalize", True):
        mean, std = processor.get("image_mean", MEAN), processor.get("image_std", STD)
    for name, found, least in (("image_mean", mean, -1e6), ("image_std", std, 1e-6), ("rescale_factor", [rescale] * 3, 1e-9)):
        numbers = isinstance(found, list | tuple) and len(found) == 3 and all(type(x) in (int, float) for x in found)
        if not numbers or not all(least <= x <= 1e6 for x in found):
            raise BadData(f"{where}: preprocessor_config.json: {name} is {_spoken(found)}, not a number (or one each for R, G, B) of use")
    return {"rescale": float(rescale), "mean": tuple(map(float, mean)), "std": tuple(map(float, std))}


def _checked(value: Any, path: str, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if depth < 0 or left[0] < 0:
        raise BadRecipe(f"{path[:200]}: a config of more than {MOST} values, or nested deeper than {DEEPEST}, describes no network")
    if isinstance(value, dict):
        return {key: _entry(key, inner, f"{path}.{str(key)[:40]}", depth, left) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(inner, path, depth - 1, left) for inner in value]
    if isinstance(value, str) and (len(value) > LONGEST or not value.isprintable()):
        raise BadRecipe(f"{path}: {_spoken(value)} is no word of a config")
    if type(value) in (int, float) and not (math.isfinite(value) and abs(value) <= LARGEST):
        raise BadRecipe(f"{path}: {_spoken(value)} is out of range (at most {LARGEST})")
    return value


def _entry(key: Any, value: Any, path: str, depth: int, left: list[int]) -> Any:
    if not isinstance(key, str) or key.startswith("__") or not key.isprintable():
        raise Refused(f"{_spoken(path)} is no setting of a network")
    if key in FETCHING and value:
        raise Refused(f"{path}: {_spoken(value)} would load code or files besides the weights; take weights that do without it")
    if key.lstrip("_").startswith(("attn_implementation", "experts_implementation")) and value is not None and value not in PLAIN:
        raise Refused(f"{path}: {_spoken(value)} would fetch a program; write eager or sdpa, or leave it out")
    if key == "backbone" and value is not None and not (isinstance(value, str) and BACKBONE.match(value)):
        raise Refused(f"{path}: {_spoken(value)} would have to be fetched; write its backbone_config instead")
    if key == "use_pretrained_backbone":
        return False
    return _checked(value, path, depth - 1, left)


def _spoken(value: Any) -> str:
    """As much of a value as a message bears."""
    try:
        text = json.dumps(value, default=str)
    except (ValueError, RecursionError):
        text = "a value nested too deep"
    return text if len(text) <= 100 else f"{text[:100]}..."
