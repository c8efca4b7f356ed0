"""From settings to a published Checkpoint: what `train` and `distill` share, which is everything but the teacher."""

import json

import torch
from torch import Tensor, nn

from pipeline.artifact import Artifact
from pipeline.errors import BadData, BadRecipe
from pipeline.keys import settings as plain
from pipeline.stage import Job, Made, Stage
from stages.chance import seed_of
from stages.kd import Pair
from stages.kd._terms import Terms
from stages.loop import fit
from stages.models import TABLE as MODELS
from stages.models import Model, open_model, row_of
from stages.samples import Samples, open_samples
from stages.train import coarser
from stages.weights import Weights, load_into, read_safetensors, save_checkpoint

AUX = ("aux_classifier.",)  # the same in all networks that can have one


def teach(stage: Stage, inputs: dict[str, Artifact], job: Job) -> Made:
    """`stage` is a Train, perhaps of a head onto a frozen network, or a Distill with a teacher and losses beside the task loss."""
    settings, data, teacher = stage.fit, inputs["data"], inputs.get("teacher")
    classes, size = data.facts["classes"], data.facts["size"]
    taught_by = MODELS.row(teacher.facts["model"]["kind"]) if teacher else None
    if misfits := settings.misfits(tuple(size) if size else None, *coarser(stage.model, taught_by)):
        raise BadRecipe("; ".join(f"fit.{'.'.join(path)}: {text}" for path, text in misfits))
    frozen = inputs.get("frozen")
    for checkpoint in filter(None, (teacher, frozen)):
        require_same_classes(checkpoint, data)
    train = open_samples(data, "train")
    val = open_samples(data, "val") if data.facts["splits"].get("val") else None
    if val is None:
        job.say("the data has no val split: nothing is measured while it learns")
    else:
        require_whole(val, stage.model)
    row = row_of(frozen).model_copy(update={"aux": True}) if frozen else stage.model  # `load` may have completed its settings
    student, model = start(row, len(classes), settings.seed, stage.init, job)
    if frozen:
        load_into(student, open_model(frozen).state_dict(), allow_missing=AUX)
        student = HeadAlone(student)
    losses = stage.losses if teacher else ()
    needed = any(row.needs_teacher for row in (stage.task, *losses))  # else it would run for nothing
    master = row_of(teacher).folded(open_model(teacher)) if needed else None
    widths = master.widths if master else {}
    pair = Pair(student.widths, widths, len(classes), text_of(inputs.get("text"), data))
    terms = Terms(stage.task, losses, pair, seed_of(settings.seed, "kd"))
    done = fit(student, terms, train, val, settings, job, master, () if frozen else model.head_keys)
    if done.publishes:
        save_checkpoint(job.out, {key.removeprefix("network."): value for key, value in done.weights.items()} if frozen else done.weights)
        (job.out / "curves.json").write_text(json.dumps(done.curves, allow_nan=False), encoding="utf-8")
    facts = {"model": plain(model), "classes": classes, "colours": data.facts["colours"], "size": size}
    return Made(facts | {"steps": settings.steps, "val": done.val}, done.beside)


def require_whole(val: Samples, model: Model) -> None:
    """Images that the student cannot take whole, although it can take crops, are told before the first step."""
    shapes = [val.size] * len(val) if val.size else [tuple(entry["shape"]) for entry in val.entries]
    wrong = [i for i, shape in enumerate(shapes) if any(side % model.multiple for side in shape)]
    if wrong:
        raise BadData(
            f"{len(wrong)} of {len(val)} val images do not fit, the first is {val.name(wrong[0])} of {list(shapes[wrong[0]])}: "
            f"{model.kind} takes multiples of {model.multiple}; change the data stage's size"
        )


def start(model: Model, classes: int, seed: int, init: Weights | None, job: Job) -> tuple[torch.nn.Module, Model]:
    """The student before its first step. Its weights depend on the seed and `init` alone, so that runs with and without a teacher pair."""
    path = init.locate() if init else None
    if assumed := model.assumed(path) if path else None:
        job.say(assumed)
    model = model.completed(path) if path else model
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "init"))
        student = model.build(classes)
    if path and (fresh := model.load(student, path, init=True)):
        job.say(f"init: {len(fresh)} weights start fresh, for the given ones lack them or hold them for other classes: {', '.join(fresh)}")
    return student, model


class HeadAlone(nn.Module):
    """A network of which only the auxiliary head learns: nothing else gets a gradient, and BatchNorm and dropout are as in use."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False)
        network.aux_classifier.requires_grad_(True)
        self.align_corners, self.widths = network.align_corners, network.widths

    def train(self, mode: bool = True):
        super().train(False)
        self.training = mode
        self.network.aux_classifier.train(mode)
        return self

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.network(image)


def text_of(matrix: Artifact | None, data: Artifact) -> torch.Tensor | None:
    """(C, D): a unit vector of language per class of the data."""
    if matrix is None:
        return None
    require_same_classes(matrix, data)
    return read_safetensors(matrix.file("text.safetensors"))["text"]


def require_same_classes(theirs_from: Artifact, data: Artifact) -> None:
    theirs, ours = theirs_from.facts["classes"], data.facts["classes"]
    if theirs != ours:
        raise BadData(
            f"{theirs_from.name} knows {len(theirs)} classes and {data.name} has {len(ours)}: they must be the same, in the same order.\n"
            f"  {theirs_from.name}: {_listed(theirs)}\n  {data.name}: {_listed(ours)}\n"
            "Make it from this data, or give the data the same class table."
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:25]) + (f", ... ({len(names) - 25} more)" if len(names) > 25 else "")
