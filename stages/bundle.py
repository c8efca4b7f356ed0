"""Packs what a device needs into one flat folder that runs without this package, and tries it out before it is published."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline import targets
from pipeline.artifact import Artifact
from pipeline.errors import BadData, Stillhouse
from pipeline.stage import Dataset, Job, Later, Made, Stage, Takes
from stages import elsewhere, machine, sidecar
from stages.elsewhere import ARGMAX, SHARED, runner

FILES = Path(__file__).parent / "bundle_files"
# Share of the sample's pixels that another machine must reproduce, by the precision of the graph and of the runtime's arithmetic: machines
# round sums in different orders, and one value on the other side of a rounding shifts all after it.
LEAST_AGREEMENT = {"bf16": 0.98, "int8": 0.98, "fp16": 0.995}
STRICT_AGREEMENT = 0.999
WORDS = {True: "passed", False: "FAILED", None: "UNDECIDED"}
MARKS = {True: "", False: ", and marked as failed: the gate's rules do not hold", None: ", and marked as failed: the gate is undecided"}
NATIVE_LINES = (
    "The engine itself gives logits, float32 (1, classes, h, w), smaller than the picture. argmax.c makes the class map of them; run.py",
    "compiles it where there is a C compiler (cc, gcc or clang) and keeps the result in your cache folder (~/.cache/stillhouse).",
    "Without a compiler the graph engine.tail.onnx gives the same map, more slowly. run.py says which of the two ran.",
)
SYSTEM_LINES = ("  (where TensorRT came with the system, as on Jetson: python3 -m venv --system-site-packages env)",)


class Bundle(Stage):
    kind: Literal["bundle"]
    makes: ClassVar[str] = "Bundle"
    version: ClassVar[int] = 3

    data: Dataset
    onnx: Annotated[str, Takes(("OnnxModel",)), Field(description="The stage whose ONNX file is packed beside the engine.")]
    engine: Annotated[str, Takes(("Engine",)), Field(description="The stage whose engine is packed.")]
    measured: Annotated[str, Takes(("Measurement",), named=True), Field(description="The stage whose figures README.txt quotes.")]
    verdict: Annotated[str, Takes(("Verdict",)), Field(description="The stage that judged them.")]
    split: str = Field("val", description="Split whose first image becomes the sample.")
    target: Annotated[str | None, Later()] = Field(
        None, pattern=targets.NAME, description="Where the engine was built, if not on this machine: the bundle is tried out there."
    )

    def problems(self, earlier: dict[str, Stage]) -> list[tuple[tuple, str]]:
        row, built = (getattr(earlier.get(self.engine), field, None) for field in ("engine", "target"))
        if built is not None and built != self.target:
            text = f"a bundle is tried out before it is packed, and {self.engine} runs only on target {built}: write target: {built}"
            return [(("engine",), text)]
        if self.target is not None and built is None:
            return [(("target",), f"{self.engine} is built on this machine, where its bundle is tried out too: leave target out")]
        if row is None:
            return []
        source = getattr(earlier[self.engine], "onnx", None)
        if builder_file(row.kind).is_file() and source != self.onnx:
            text = f"a device builds {self.engine} again from the packed ONNX file, and it was built from {source}: write onnx: {source}"
            return [(("onnx",), text)]
        if runner(row.kind).is_file():
            return []
        packable = sorted({file.stem.removeprefix("runtime_") for file in FILES.glob("runtime_*.py")} | set(SHARED))
        return [(("engine",), f"an engine of kind {row.kind} runs only with this package; bundle one of kind {' or '.join(packable)}")]

    def environment(self) -> dict[str, str]:
        return elsewhere.described(self.there)

    def run(self, inputs: dict[str, Artifact], job: Job) -> Made:
        engine, measurement, verdict = inputs["engine"], inputs["measured"].json("measurement.json"), inputs["verdict"].json("verdict.json")
        require_one_table(inputs)
        settings, out = engine.facts["engine"], job.out
        if builder_file(settings["kind"]).is_file():
            require_same_network(engine, inputs["onnx"])
        for file in sorted(engine.folder.glob("engine.*")):
            shutil.copyfile(file, out / file.name)
        for artifact, name in (("onnx", "model.onnx"), ("onnx", "preprocessing.json"), ("verdict", "verdict.json")):
            shutil.copyfile(inputs[artifact].file(name), out / name)
        shutil.copyfile(FILES / "run.py", out / "run.py")
        shutil.copyfile(runner(settings["kind"]), out / "runtime.py")
        if settings.get("argmax") == "native":
            for file in (ARGMAX, FILES / "argmax.py"):
                shutil.copyfile(file, out / file.name)
        if (builder := builder_file(settings["kind"])).is_file():
            shutil.copyfile(builder, out / builder.name)
        write_json(out / "classes.json", {key: engine.facts[key] for key in ("classes", "colours")} | {"ignore": 255})
        (out / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements(settings, job)), encoding="utf-8")
        name = write_sample(inputs["data"], self.split, engine, job)
        where = measurement["target"]["facts"] if self.target and "target" in measurement else measurement["machine"]
        figures = {"measured": measurement["models"].get(engine.name), "machine": where, "split": measurement["split"]}
        (out / "README.txt").write_text(readme(engine, figures, verdict, measurement["images"]), encoding="utf-8")
        passed = verdict["passed"] is True  # an undecided gate has not passed
        facts = {"engine": settings, "passed": passed, "least_agreement": least_agreement(engine.facts)}
        if settings.get("argmax") == "native":
            facts["tail"] = engine.facts["tail"]
        write_json(out / "bundle.json", {**facts, "sample": name, "verdict": verdict, "files": digests(out)})
        job.say(approved(*(elsewhere.tried(out, job) if job.target else tried(out))) + (f" (target {self.target})" if self.target else ""))
        job.say(f"packed{MARKS[verdict['passed']]}")
        return Made({"engine": settings, "passed": passed})


def require_one_table(inputs: dict[str, Artifact]) -> None:
    from stages.measure.predict import require_same_table

    for other in ("onnx", "data"):
        require_same_table(inputs["engine"], inputs[other])


def require_same_network(engine: Artifact, onnx: Artifact) -> None:
    """What builds the engine again elsewhere must build it from the same file."""
    if sidecar.read(engine.folder).source.sha256 != sidecar.stored(onnx.file("model.onnx")).sha256:
        raise BadData(
            f"{engine.name} was not built from {onnx.name}, which would be packed to build it again: name the stage it was built from"
        )


def write_sample(data: Artifact, split: str, engine: Artifact, job: Job) -> str:
    """sample.png as the source holds it and expected.png, its class map at the same size; returns the image's name."""
    import numpy as np
    from PIL import Image

    from stages.measure.predict import fitted
    from stages.samples import open_samples
    from stages.validate import write_map

    samples = open_samples(data, split)
    if not len(samples):
        raise BadData(f"split {split} of {data.name} is empty: there is no image for a sample")
    image, session = np.array(samples.source(0)), elsewhere.session(engine, job)
    found = session(fitted(image, tuple(engine.facts["size"]))[None].copy())[0]
    if job.target:
        session.end()  # the runner may need the device's whole memory
    height, width = image.shape[:2]
    found = np.asarray(Image.fromarray(found).resize((width, height), Image.Resampling.NEAREST))
    Image.fromarray(image).save(job.out / "sample.png")
    write_map(found, engine.facts["colours"], job.out / "expected.png")
    return samples.name(0)


def tried(out: Path) -> tuple[int, str, str]:
    """Runs the packed runner as its receiver would, but that it leaves nothing in the user's cache folder; as elsewhere.tried."""
    command = [sys.executable, "-B", str((out / "run.py").resolve()), "--check"]
    with tempfile.TemporaryDirectory() as cache:
        how = {"cwd": out, "env": {**os.environ, "XDG_CACHE_HOME": cache}, "capture_output": True, "text": True, "start_new_session": True}
        try:
            done = subprocess.run(command, timeout=elsewhere.CHECK_S, **how)
        except subprocess.TimeoutExpired:
            raise Stillhouse(f"the packed runner did not end within {elsewhere.CHECK_S} s on its sample") from None
    return done.returncode, done.stdout, done.stderr


def approved(code: int, said: str, complained: str) -> str:
    """The first line of what a runner said, if it was content."""
    lines = (said if code == 0 else complained or said).strip().splitlines() or ["nothing"]
    if code != 0:
        raise Stillhouse(f"the packed runner fails on its own sample, it says: {lines[-1]}")
    return lines[0]


def builder_file(kind: str) -> Path:
    """What builds the engine again where this one does not open; not every kind has or needs one."""
    return FILES / f"build_{SHARED.get(kind, kind)}.py"


def requirements(settings: dict[str, Any], job: Job) -> list[str]:
    """With the versions of where the bundle is tried out."""
    from stages.engines import TABLE as ENGINES

    row, version = (
        ENGINES.row(settings["kind"]).model_validate(settings),
        elsewhere.versions(job.target.facts) if job.target else machine.version,
    )
    return [version(name).replace(" ", "==") for name in ("numpy", "pillow")] + row.requirements(version)


def least_agreement(facts: dict[str, Any]) -> float:
    """`facts`: of an engine."""
    precisions = facts["engine"].get("precision"), facts["onnx"]["precision"]
    return min(LEAST_AGREEMENT.get(precision, STRICT_AGREEMENT) for precision in precisions)


def digests(out: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.iterdir())}


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def readme(engine: Artifact, figures: dict[str, Any], verdict: dict[str, Any], images: int) -> str:
    (height, width), classes, ran = (engine.facts[key] for key in ("size", "classes", "ran"))
    lines = [
        "WHAT THIS IS",
        f"A network that gives every pixel of a picture one of {len(classes)} classes: {', '.join(classes)}.",
        f"Runtime: {ran['runtime']} on {ran['provider']}, precision {ran['precision']}.",
        "",
        "HOW TO RUN IT",
        "  python -m venv env && env/bin/pip install -r requirements.txt",
        *(SYSTEM_LINES if runner(engine.facts["engine"]["kind"]).name == "runtime_tensorrt.py" else ()),
        "  env/bin/python run.py --check          is this folder whole, and does this machine compute what it should?",
        "  env/bin/python run.py picture.png      writes picture_mask.png",
        "",
        "HOW TO CALL THE NETWORK YOURSELF",
        f"Give image: uint8 (1, {height}, {width}, 3), RGB 0..255; it normalises by itself. Get classmap: uint8 (1, {height}, {width}).",
        "preprocessing.json says the same for programs, classes.json names the classes and colours. model.onnx is the network in ONNX.",
        *(NATIVE_LINES if engine.facts["engine"].get("argmax") == "native" else ()),
        "",
        "WHAT WAS MEASURED",
        *measured_lines(figures, images),
        "",
        f"VERDICT: {WORDS[verdict['passed']]}{'' if verdict['passed'] else ' - do not ship this'}",
        *(f"  {WORDS[rule['passed']]}: {rule['text']}" for rule in verdict["rules"]),
    ]
    return "\n".join(lines) + "\n"


def measured_lines(figures: dict[str, Any], images: int) -> list[str]:
    model = figures["measured"]
    if model is None:
        return ["This engine is not among the measured models."]
    lines = [f"  mIoU {model['miou']:.2f} points on {images} images of {figures['split']}", f"  {model['size_mb']:.2f} MB"]
    latency, where = model["latency"], figures["machine"]
    if latency is None:
        return [*lines, "  time: not measured"]
    name = (
        where["gpus"][0]["name"]
        if where["gpus"] and model["ran"]["provider"] not in ("CPU", "cpu", "CPUExecutionProvider")
        else where["cpu"]
    )
    times = ", ".join(f"{p} {latency['image_ms'][p]:.2f} ms" for p in ("p50", "p90", "p99"))
    return [*lines, f"  one image in memory to class map: {times} ({name}, {where['cores']} cores)"]
