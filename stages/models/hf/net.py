"""A transformers network behind our contract: the last classifier and the feature pyramid are found by one dry forward when it is built."""

import math
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import BadData, BadRecipe, Missing, Stillhouse
from stages.bounds import bounded, wants_memory
from stages.models import freeze_idle, require_multiple
from stages.models._fcn import fcn
from stages.weights import headers, load_into, mismatch, read_safetensors, spoken

from .settings import check

MOST_WEIGHTS = 10**10
HEAD = 20_000_000  # weights of a head that a published body may lack


class HfNet(nn.Module):
    def __init__(self, settings: dict[str, Any], classes: int, mean: tuple, std: tuple, rescale: float, aux: bool = False):
        super().__init__()
        self.net = network(settings, classes)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) / rescale, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) / rescale, persistent=False)
        self.align_corners = False
        self.seen: dict[str, Tensor] = {}  # what the hook caught in the forward under way
        self.aux_classifier = None
        self.side = side = settings.get("image_size") if isinstance(settings.get("image_size"), int) else 64  # of an image to try it with
        image = torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side)
        classifier = last_classifier(self.net, image, classes)
        if classifier is not None:
            classifier.register_forward_pre_hook(self.remember)  # a bound method follows the module through deepcopy (EMA)
        taps = freeze_idle(self.net, lambda: dry(self.net, lambda: self.taps(image)))
        self.widths = {name: x.shape[1] for name, x in taps.items()}
        self.strides = {name: side // x.shape[2] for name, x in taps.items()}
        if aux:
            if "c3" not in taps:
                raise BadRecipe(f"model.aux: {settings['model_type']} gives no map of stride 16 for an auxiliary head: write aux: false")
            self.aux_classifier = fcn(self.widths["c3"], classes)
            self.widths["aux"], self.strides["aux"] = classes, self.strides["c3"]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        require_multiple(image, 32)
        x = (image - self.mean) / self.std
        if torch.compiler.is_exporting():  # a graph keeps no side effects, such as what a hook stores
            return {"logits": self.net(pixel_values=x).logits}
        return self.taps(x)

    def taps(self, x: Tensor) -> dict[str, Tensor]:
        self.seen = {}
        out = self.net(pixel_values=x, output_hidden_states=True)
        seen, self.seen = self.seen, {}
        taps = {"logits": out.logits} | seen | pyramid(out.hidden_states or (), x.shape[2:])
        return taps if self.aux_classifier is None else taps | {"aux": self.aux_classifier(taps["c3"])}

    def remember(self, module: nn.Module, args: tuple) -> None:
        if not torch.compiler.is_exporting():
            self.seen["head"] = args[0]


def load_published(module: HfNet, source: "Path | dict[str, Tensor]", init: bool) -> list[str]:
    """Puts published weights in; transformers itself maps older names to those of its present version."""
    given = headers(source) if isinstance(source, Path) else source
    if given.keys() == module.state_dict().keys():  # our own checkpoint
        return load_into(module, source)
    own = module.net.state_dict()
    head = [key for key in module.state_dict() if not key.startswith("net.")]
    state = read_safetensors(source) if isinstance(source, Path) else source
    state = {key.removeprefix("net."): value for key, value in state.items()}
    with quiet(), torch.random.fork_rng(devices=[]):
        fresh, info = type(module.net).from_pretrained(
            None, config=module.net.config, state_dict=state, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    missing, other_shape = set(info["missing_keys"]), {key: tuple(found) for key, found, _ in info["mismatched_keys"]}
    if not init:
        where = str(source) if isinstance(source, Path) else "the given weights"
        refuse(where, own, state, missing, other_shape, info["unexpected_keys"])
        if head:
            raise BadData(f"{where} lack an auxiliary head of ours: write aux: false here, and train one in a stage with frozen")
    kept = missing | other_shape.keys()
    if len(kept) == len(own):
        raise BadData(f"{source} holds no weight of this model ({module.net.config.model_type})")
    load_into(module.net, {key: value for key, value in fresh.state_dict().items() if key not in kept}, None, tuple(kept))
    return sorted([*(f"net.{key}" for key in kept), *head])


def refuse(where: str, own: dict, state: dict, missing: set, other_shape: dict[str, tuple], unexpected: list) -> None:
    """Raises unless the published weights are all the network has, and nothing else."""
    lines = [f"{key}: expected {spoken(own[key])}, found nothing" for key in sorted(missing - other_shape.keys())]
    lines += [f"{key}: expected {spoken(own[key])}, found {list(shape)}" for key, shape in sorted(other_shape.items())]
    lines += [f"{key}: expected nothing" + (f", found {spoken(state[key])}" if key in state else "") for key in sorted(unexpected)]
    if lines:
        raise BadData(mismatch(lines, [(tuple(own[key].shape), shape) for key, shape in other_shape.items()], where))


def built(settings: dict[str, Any], classes: int, mean: tuple, std: tuple, rescale: float, aux: bool) -> HfNet:
    """The network, in the memory that fits to its number of weights: sizes of images and patches are settings, too."""
    size = 4 * weights_of(settings, classes)
    with bounded(f"a network of model_type {settings['model_type']} with these settings", size, None), understood(settings["model_type"]):
        return HfNet(settings, classes, mean, std, rescale, aux)


def weights_of(settings: dict[str, Any], classes: int) -> int:
    """How many weights the settings describe, counted before any is allocated."""
    with bounded("a network of these model.settings", 0), torch.device("meta"), torch.random.fork_rng(devices=[]):
        found = network(settings, classes).num_parameters()
    if found > MOST_WEIGHTS:
        raise BadRecipe(f"model.settings: they describe a network of {found:,} weights, and {MOST_WEIGHTS:,} is the limit")
    return found


def require_together(settings: dict[str, Any], weights: Path) -> None:
    """BadData when config.json describes a network much larger than what lies beside it: heads may differ, the body does not."""
    described, held = weights_of(settings, 2), sum(math.prod(header.shape) for header in headers(weights).values())
    if described > 2 * held + HEAD:
        raise BadData(
            f"{weights}: config.json describes a network of {described:,} weights, and {held:,} are there: they do not belong together"
        )


def network(settings: dict[str, Any], classes: int) -> nn.Module:
    """Built from its config alone: no file is read, nothing is fetched."""
    try:
        from transformers import AutoConfig, AutoModelForSemanticSegmentation
        from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES as KNOWN
    except ImportError as e:
        raise Missing(f"models of kind hf need transformers: pip install 'stillhouse[hf]' ({e})") from None
    name = settings.get("model_type")
    if not name:
        raise BadRecipe("model.settings: needs the transformers config with its model_type; only `load` reads it from config.json")
    if not isinstance(name, str) or name not in KNOWN:
        found = name[:60] if isinstance(name, str) else type(name).__name__
        raise BadRecipe(
            f"model.settings: transformers cannot build {found!r} as a semantic segmentation network: it knows {', '.join(KNOWN)}"
        )
    with understood(name), quiet():
        config = AutoConfig.for_model(**check(settings))
        config.num_labels = classes
        return AutoModelForSemanticSegmentation.from_config(config, dtype=torch.float32, trust_remote_code=False)


@contextmanager
def understood(name: str):
    """Whatever transformers meets in settings that nobody vouches for, the answer is the same."""
    try:
        yield
    except Stillhouse:
        raise
    except Exception as error:
        if wants_memory(error):
            raise
        why = "".join(c for c in str(error).strip().split("\n")[0][:200] if c.isprintable())
        raise BadRecipe(f"model.settings: transformers cannot build {name!r} as a semantic segmentation network: {why}") from None


def last_classifier(net: nn.Module, image: Tensor, classes: int) -> nn.Module | None:
    """The convolution whose output is the logits, as it is or enlarged: told by its values, since auxiliary heads look the same."""
    calls = []
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.out_channels == classes]
    hooks = [m.register_forward_hook(lambda m, args, out: calls.append((m, out))) for m in convs]
    with torch.no_grad():
        logits = dry(net, lambda: net(pixel_values=image).logits)
    for hook in hooks:
        hook.remove()
    return next((m for m, out in calls if same(out, logits)), None)


def same(out: Tensor, logits: Tensor) -> bool:
    return any(
        torch.allclose(F.interpolate(out, logits.shape[2:], mode="bilinear", align_corners=a), logits, rtol=1e-4, atol=1e-5)
        for a in (False, True)
    )


def pyramid(states: tuple, size: tuple[int, int]) -> dict[str, Tensor]:
    """The last map (B, C, h, w) at each of the strides 4, 8, 16, 32; token sequences and other layouts are left out."""
    maps = [x for x in states if x.ndim == 4]
    names = {(size[0] // s, size[1] // s): name for s, name in ((4, "c1"), (8, "c2"), (16, "c3"), (32, "c4"))}
    found = {names[key]: x for x in maps if (key := tuple(x.shape[2:])) in names}
    return dict(sorted(found.items()))


def dry(net: nn.Module, forward):
    """One forward that leaves no trace: eval mode, the random state as it was."""
    training = net.training
    net.eval()
    with torch.random.fork_rng(devices=[]):
        out = forward()
    net.train(training)
    return out


@contextmanager
def quiet():
    """Without transformers' progress bars and load report: what matters of them is said by our own errors."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
