"""Builds an engine, here or on a target, from exactly the ONNX file (or checkpoint) it is given, and looks at its first answers."""

import shutil
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline import targets
from pipeline.artifact import Artifact
from pipeline.stage import Job, Later, Made, Stage, Takes
from stages import elsewhere, machine, sidecar
from stages.engines import TABLE as ENGINES
from stages.engines import Engine

FIELDS = {"OnnxModel": "onnx", "Checkpoint": "checkpoint"}  # what an engine takes -> the field that names it
OF_ONNX = ("opset", "exporter", "batch", "parameters", "source", "precision", "quantized")  # facts an engine keeps of its ONNX file
TIMING = "engine.timing"  # lies where the engine is built: what an earlier build measured before, what both measured after
PROBE = (256, 512)  # size of the images an engine of a checkpoint without a size is looked at with


class Optimize(Stage):
    kind: Literal["optimize"]
    makes: ClassVar[str] = "Engine"
    version: ClassVar[int] = 2

    onnx: Annotated[str | None, Takes(("OnnxModel",)), Field(description="The stage whose ONNX file becomes an engine.")] = None
    checkpoint: Annotated[str | None, Takes(("Checkpoint",)), Field(description="The same for engines that take a checkpoint.")] = None
    engine: ENGINES.field() = Field(description="The runtime and its settings.")
    timing: Annotated[
        str | None,
        Takes(("Engine",)),
        Later(),
        Field(description="An earlier stage whose timing cache spares this build the measuring, and settles what it would measure anew."),
    ] = None
    target: Annotated[str | None, Later()] = Field(
        None, pattern=targets.NAME, description="The machine it is built on, by its name in targets.yaml; none: this one."
    )

    @model_validator(mode="after")
    def takes_what_the_engine_takes(self) -> Self:
        wanted = FIELDS[self.engine.takes]
        given = [field for field in FIELDS.values() if getattr(self, field) is not None]
        if given != [wanted]:
            raise ValueError(
                f"engine {self.engine.kind} is built from {wanted}: write {wanted}, and found {' and '.join(given) or 'neither'}"
            )
        if self.timing is not None and not self.engine.keeps_timing:
            raise ValueError(f"timing: engines of kind {self.engine.kind} measure nothing when they are built; leave it out")
        return self

    def problems(self, earlier: dict[str, Stage]) -> list[tuple[tuple, str]]:
        found, source = [], earlier.get(self.onnx)
        quantised = source is not None and source.kind in ("quantize", "aware")
        if quantised and (unsuited := source.unsuited(self.engine.kind)):
            found.append((("onnx",), f"{self.onnx} is {unsuited}"))
        if not getattr(getattr(earlier.get(self.timing), "engine", None), "keeps_timing", True):
            text = f"{self.timing} keeps no timing cache; name a stage whose engine is of kind {self.engine.kind}"
            found.append((("timing",), text))
        if self.target is not None and not elsewhere.builder(self.engine.kind).is_file():
            found.append((("target",), f"an engine of kind {self.engine.kind} is built on this machine only: leave target out"))
        return found

    def environment(self) -> dict[str, str]:
        if self.target is not None:
            return elsewhere.environment(self.there, self.engine) if self.there else {}
        ours = self.engine.environment()
        return ours | sidecar.device_facts(machine.facts(), "gpu" in ours)

    def run(self, inputs: dict[str, Artifact], job: Job) -> Made:
        source = inputs[FIELDS[self.engine.takes]]
        there = elsewhere.There(job) if self.target else None
        if self.timing is not None:
            shutil.copyfile(inputs["timing"].file(TIMING), job.out / TIMING)
        built = there.build(self.engine, source, job.out, job.state) if there else self.engine.build(source, job.out)
        facts = facts_of(self.engine, source, built)
        environment = elsewhere.environment(job.target, self.engine) if there else self.environment()
        sidecar.write(job.out, source, facts, environment, self.engine.needs())
        if not facts.get("opened", True):
            job.say(f"{facts['ran']['runtime']}, {facts['ran']['precision']}: built, and not opened, for want of a GPU")
            return Made(facts | {"probe": None})
        found = looked_at(there or self.engine.open(job.out, facts), source)
        share = f"{found['agreement']:.3%} of the pixels of {found['images']} test pictures"
        job.say(f"{describe(facts['ran'])}: same class as {found['against']} on {share}")
        return Made(facts | {"probe": found})


def facts_of(engine: Engine, source: Artifact, built: dict[str, Any]) -> dict[str, Any]:
    """What is known of an engine of these settings; `built` is what building it told."""
    facts = {"engine": engine.model_dump(mode="json"), "size": source.facts["size"]} | built
    facts |= {key: source.facts[key] for key in ("classes", "colours")}
    return facts | ({"onnx": {key: source.facts.get(key) for key in OF_ONNX}} if source.kind == "OnnxModel" else {})


def looked_at(session, source: Artifact) -> dict[str, Any]:
    """The new engine against what it was built from, on pictures that need no data. Real images are the business of validate."""
    from stages.measure.parity import compare, probes
    from stages.measure.predict import open_session

    pictures = probes(tuple(source.facts["size"] or PROBE))
    found = compare(session, open_session(source), pictures)
    against = "the same file in onnxruntime" if source.kind == "OnnxModel" else "pytorch in f32"
    return {"images": found.images, "agreement": found.agreement, "against": against}


def describe(ran: dict[str, Any]) -> str:
    return f"{ran['runtime']} on {ran['provider']}{f' of {place}' if (place := ran.get('place')) else ''}, {ran['precision']}"
