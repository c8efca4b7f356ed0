"""Opens whatever can predict (a Checkpoint, an OnnxModel, an Engine) as one kind of session: images in, class maps out."""

import numpy as np

from pipeline.artifact import Artifact
from pipeline.errors import BadData, Refused
from stages import machine
from stages.engines import TABLE as ENGINES
from stages.engines import Session

BESIDE = ("engine.json", "engine.timing", "engine.layers.json")  # of an engine: what tells of it, or serves the next build


def open_session(artifact: Artifact, threads: int | None = None) -> Session:
    """A Checkpoint runs eager in float32, on the GPU where there is one; an OnnxModel in onnxruntime on the CPU; an Engine as built.

    `threads` replaces the engine's own setting.
    """
    if artifact.kind == "Checkpoint":
        from stages.engines.pytorch import session_of
        from stages.models import open_model

        return session_of(open_model(artifact), device="cuda" if machine.has_device() else "cpu", threads=threads)
    if artifact.kind == "OnnxModel":
        from stages.engines.onnxruntime import session_of

        return session_of(artifact.file("model.onnx"), threads=threads)
    if "foreign" in artifact.facts:
        where = artifact.facts["foreign"]["target"]
        raise Refused(f"{artifact.name} was built on target {where}; it is never opened here: validate it with target: {where}")
    settings = artifact.facts["engine"]
    row = ENGINES.row(settings["kind"]).model_validate(settings)
    return (row.model_copy(update={"threads": threads}) if threads else row).open(artifact.folder, artifact.facts)


def open_rewritten(checkpoint: Artifact) -> Session:
    """The network as it is exported, before anything is exported: run by PyTorch as the checkpoint itself is."""
    from stages.engines.pytorch import session_of
    from stages.models import open_model, row_of

    return session_of(row_of(checkpoint).folded(open_model(checkpoint)), device="cuda" if machine.has_device() else "cpu")


def fitted(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """uint8 (h, w, 3) -> uint8 (H, W, 3) at the network's size (H, W), as the data stage brings images to it."""
    from stages.sources._images import resize_image

    return image if size is None or image.shape[:2] == tuple(size) else resize_image(image, tuple(size))


def require_same_table(one: Artifact, other: Artifact) -> None:
    """Class numbers can be compared only where they mean the same, and maps only at one size."""
    if one.facts["classes"] != other.facts["classes"]:
        raise BadData(
            f"{one.name} and {other.name} speak of different classes ({len(one.facts['classes'])} and {len(other.facts['classes'])}, "
            f"or in another order); build both from one data stage"
        )
    sizes = [list(artifact.facts["size"]) for artifact in (one, other) if artifact.kind != "Checkpoint" and artifact.facts.get("size")]
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        raise BadData(f"{one.name} is made for images of {sizes[0]}, {other.name} for {sizes[1]}; export again with this data stage")


def weight_bytes(artifact: Artifact) -> int:
    """What a device would have to hold on disk: the weights, the ONNX file, or all files of the engine that running it takes."""
    names = {"Checkpoint": "weights.safetensors", "OnnxModel": "model.onnx", "Engine": "engine.*"}
    return sum(file.stat().st_size for file in artifact.folder.glob(names[artifact.kind]) if file.name not in BESIDE)


def parameter_count(artifact: Artifact, session: Session) -> int | None:
    """Trained parameters of the network, wherever it is known."""
    module = getattr(session, "module", None)
    if module is not None:
        return sum(p.numel() for p in module.parameters())
    return artifact.facts.get("parameters") or artifact.facts.get("onnx", {}).get("parameters")
