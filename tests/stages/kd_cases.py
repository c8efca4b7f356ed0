"""What the contract of stages/kd is checked with: settings that take every path through every row, and what may be asked of each."""

import torch

from stages.kd import TABLE, Pair
from stages.kd._step import Step

B, C, D = 2, 5, 7  # images, classes, width of the language
STUDENT = {"logits": C, "aux": C, "head": 6, "c1": 4, "c2": 6, "c3": 8, "c4": 10}
TEACHER = {"logits": C, "aux": C, "head": 8, "c1": 4, "c2": 8, "c3": 10, "c4": 12}
STRIDES = {"logits": 4, "aux": 8, "head": 4, "c1": 4, "c2": 8, "c3": 16, "c4": 32}

# Every row with its defaults, and the settings that take another path through it.
VARIED = [{"kind": name} for name in TABLE.names()] + [
    # pixel
    {"kind": "pixel", "at": "logits", "temperature": 2.0, "weight": 0.5},
    {"kind": "pixel", "temperature": 4.0},
    # cirkd, mgd, afdcd
    {"kind": "cirkd", "pool": 2, "queue": 16, "pixel_weight": 0.0},
    {"kind": "cirkd", "weight": 0.0, "queue": 40},
    {"kind": "mgd", "hidden": 3, "mask": 0.0},
    {"kind": "afdcd", "contrast_weight": 0.0},
    {"kind": "afdcd", "mask": 0.0},
    # heteroakd
    {"kind": "heteroakd", "form": "bernoulli", "label_down": "nearest", "pixel_weight": 0.0, "temperature": 1.0},
    {"kind": "heteroakd", "projector_relu": True, "warm_up": 0.0, "ramp": 0.0},
    # gskd
    {"kind": "gskd", "preset": "sharp", "group": 3},
    {"kind": "gskd", "group": 0, "mask_diagonal": False, "per_class": 3},
    # kt
    {"kind": "kt", "switch": 1.0},
    {"kind": "kt", "trainable": True},
    {"kind": "kt", "trainable": True, "switch": 0.75, "contrast": 0.0},
    {"kind": "kt", "trainable": True, "feature": 0.0, "logit": 0.0, "channel": 2.0, "temperature": 1.0},
    # rdd
    {"kind": "rdd", "preset": "paper"},
    {"kind": "rdd", "tfe": 1.0},
    {"kind": "rdd", "tfe": 0.0, "switch": "linear", "mode": "or", "difficulty": "entropy"},
    {"kind": "rdd", "min_kept_frac": 0.9, "mode": "ohem", "class_weights": [0.5, 1.0, 1.5, 0.8, 1.2]},
    # cwd
    {"kind": "cwd", "at": "head"},
    # dist
    {"kind": "dist", "temperature": 2.0, "weight": 0.5, "aux_weight": 0.0},
    # text
    {"kind": "text", "prior": 0.1, "absent": 0.2, "center": False, "least": 1},
    {"kind": "text", "region_weight": 0.0, "warmup": 0.0, "ramp": 1.0},
]

# Kinds for which a general statement does not hold, each with the reason.
DRAWS = {  # draw random numbers, so that the order of images matters: tested with their own means
    "cirkd": "which remembered vectors a step meets",
    "mgd": "hidden pixels",
    "afdcd": "hidden pixels",
    "gskd": "samples pixels of each class, and deals their relations into descriptors",
}
OVER_THE_BATCH = {  # the loss of a batch is not the mean of those of its halves
    "cirkd": "pairs of images, and BatchNorm",
    "dist": "correlates each class over the pixels of all images",
    "heteroakd": "BatchNorm in its projectors",
    "rdd": "the K-th smallest confidence, and how many pixels are selected, are those of the batch",
    "text": "text_region is a mean over the regions of the batch, and its halves have different numbers of them",
}
GATHERS = {  # with twice the images it is another loss: tested with its own means
    "cirkd": "its memory takes what all processes saw",
}
# And kinds for which more holds than in general.
SETTLED = ("pixel", "cwd", "at", "dist", "fitnet", "ifvd", "skd")  # a student equal to its teacher has nothing to learn
UNDER_LABELS = ("ce", "rdd", "text")  # and pixel at the labels: what lies under an ignored label is not looked at
POINTWISE = (  # pixels may trade places, in all maps alike; others look at neighbours
    *("ce", "pixel", "cwd", "heteroakd", "rdd", "at", "dist", "fitnet", "ifvd", "text"),
)


def row_of(settings):
    return TABLE.row(settings["kind"]).model_validate(settings)


def language() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(9)), dim=1)


def pair(student=STUDENT, teacher=TEACHER) -> Pair:
    return Pair(student, teacher, C, language())


def built(settings, student=STUDENT, teacher=TEACHER, seed=3):
    row = row_of(settings)
    torch.manual_seed(seed)
    return row, row.build(pair(student, teacher))


def taps(seed: int, widths=STUDENT, size=(32, 48), b=B) -> dict[str, torch.Tensor]:
    """Features after a ReLU, logits of both signs; `size` is that of the logits, a quarter of the labels'."""
    g = torch.Generator().manual_seed(seed)
    made = {n: torch.randn(b, w, *(max(1, side * 4 // STRIDES[n]) for side in size), generator=g) for n, w in widths.items()}
    return {n: v if n in ("logits", "aux") else v.relu() for n, v in made.items()}


def labels(seed: int = 0, size=(128, 192), b=B) -> torch.Tensor:
    """Patches of 8 pixels, each with a class, or ignored."""
    g = torch.Generator().manual_seed(seed)
    small = torch.randint(0, C, (b, -(-size[0] // 8), -(-size[1] // 8)), generator=g, dtype=torch.uint8)
    small[torch.rand(small.shape, generator=g) < 0.15] = 255
    return small.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, : size[0], : size[1]].contiguous()


def step_for(row, student, teacher, y=None, progress=0.5, **more) -> Step:
    return Step(student, teacher, labels() if y is None else y, maps=row.maps(), progress=progress, **more)
