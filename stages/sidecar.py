"""engine.json beside an engine: what built it, where, for which device, with every digest; and whether that would run on this machine.

Runtimes refuse a plan of another version or device late and in few words, some crash. So all that decides it stands in a file of its own,
which travels with the engine into bundles; never in a header inside the plan. Comparing imports no runtime and opens no plan.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline import fsops
from pipeline.artifact import Artifact
from pipeline.doctor import Finding
from pipeline.errors import BadData, Refused
from stages import machine
from stages.engines import TABLE as ENGINES

NAME = "engine.json"
LARGEST = 64 * 1024  # bytes of it
SOURCES = {"OnnxModel": "model.onnx", "Checkpoint": "weights.safetensors"}  # what an engine is built from -> its file

Words = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^engine\.[A-Za-z0-9_.-]{1,80}$")]


class Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Stored(Plain):
    sha256: Digest
    bytes: int = Field(ge=0)


class Source(Stored):
    kind: Literal["OnnxModel", "Checkpoint"]


class Device(Plain):
    """Of a CPU or of a GPU; the other one's facts are absent."""

    cpu: Words | None = None
    instructions: list[Words] | None = None  # those of machine.INSTRUCTIONS
    gpu: Words | None = None
    capability: Annotated[str, Field(pattern=r"^\d{1,2}\.\d{1,2}$")] | None = None
    driver: Annotated[str, Field(pattern=r"^\d{1,3}\.\d{1,2}$")] | None = None  # the CUDA version it speaks


class Needs(Plain):
    """What the engine cannot do without. A row says it (Engine.needs); what is not said here may differ."""

    runtime: Literal["any", "same"] = "any"  # version
    capability: Literal["any", "same", "later"] = "any"  # of the GPU; later: the same or a higher one
    instructions: list[Words] = []  # at least one of them


class Precision(Plain):
    graph: Words  # of the ONNX file: f32, fp16, int8
    arithmetic: Words  # as the runtime says


class SideCar(Plain):
    schema_: Literal[1] = Field(1, alias="schema")
    engine: dict[str, Any]  # settings of the row
    runtime: Words  # name and version
    device: Device
    precision: Precision
    needs: Needs
    files: Annotated[dict[FileName, Stored], Field(min_length=1, max_length=32)]
    source: Source
    target: Words | None  # where it was built, if not on the machine that ordered it


def write(out: Path, source: Artifact, facts: dict[str, Any], environment: dict[str, str], needs: dict[str, Any]) -> None:
    """engine.json for the engine.* files in `out`. `environment`: as it is keyed, of the machine that built it."""
    device: dict[str, Any] = {name: environment[name] for name in ("cpu", "gpu", "capability", "driver") if name in environment}
    if "gpu" in device:
        device.pop("cpu", None)
    else:
        device["instructions"] = environment["instructions"].split()
    made = SideCar(
        schema=1,
        engine=facts["engine"],
        runtime=environment["runtime"],
        device=Device(**device),
        precision=Precision(graph=source.facts.get("precision", "f32"), arithmetic=facts["ran"]["precision"]),
        needs=Needs(**needs),
        files={file.name: stored(file) for file in sorted(out.glob("engine.*"))},
        source=Source(kind=source.kind, **stored(source.file(SOURCES[source.kind])).model_dump()),
        target=facts["foreign"]["target"] if "foreign" in facts else None,
    )
    (out / NAME).write_text(json.dumps(made.model_dump(mode="json", by_alias=True), indent=2) + "\n", encoding="utf-8")


def device_facts(machine_facts: dict[str, Any], on_gpu: bool) -> dict[str, str]:
    """The device an engine is built for, flat and in words, as it belongs to a key."""
    if not on_gpu:
        return {"cpu": machine_facts["cpu"], "instructions": " ".join(machine_facts["instructions"])}
    gpus = machine_facts["gpus"]
    found = {"gpu": ", ".join(gpu["name"] for gpu in gpus) or "none"}
    if gpus:  # the first one is what a runtime takes unasked
        found |= {"capability": gpus[0]["capability"], "driver": machine_facts["driver"] or "0.0"}
    return found


def stored(file: Path) -> Stored:
    size, digest = fsops.sha256(file)
    return Stored(sha256=digest, bytes=size)


def read(folder: Path) -> SideCar:
    """Of a folder that anybody may have written."""
    file = folder / NAME
    if file.is_symlink() or not file.is_file():
        raise BadData(f"{folder} holds no {NAME}: an engine made before there was one, or none at all. Build it again")
    with file.open("rb") as content:
        text = content.read(LARGEST + 1)
    try:
        if len(text) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        return SideCar.model_validate_json(text)
    except (ValidationError, ValueError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part)[:40] for part in first["loc"])
        raise Refused(f"{file} is not what a build leaves ({f'{where}: ' if where else ''}{first['msg'][:120]}): build it again") from None


def examine(folder: Path) -> list[Finding]:
    """Whether the engine of this folder would run on this machine, fact by fact."""
    found = read(folder)
    ours = device_facts(machine.facts(), found.device.gpu is not None)
    findings = [_whole(folder, found), _runtime(found), *(_cpu(found, ours) if found.device.gpu is None else _gpu(found, ours))]
    graph, arithmetic = found.precision.graph, found.precision.arithmetic
    how = "computed as it is" if arithmetic == "as exported" else f"computed in {arithmetic}"
    findings.append(Finding("precision", "good", f"a graph in {graph}, {how}"))
    if found.target:
        findings.append(Finding("origin", "good", f"built on target {found.target}: runs measure it there, and never open it elsewhere"))
    return findings


def _whole(folder: Path, found: SideCar) -> Finding:
    there = {file.name for file in folder.glob("engine.*")} - {NAME}
    if strangers := sorted(there ^ set(found.files)):
        return Finding("files", "damaged", f"{', '.join(strangers)[:200]}: missing, or not listed in {NAME}. Build it again")
    for name, expected in found.files.items():
        file = folder / name
        if file.is_symlink() or not file.is_file() or stored(file) != expected:
            return Finding("files", "damaged", f"{name} is not the file that was built (its sha256 differs). Fetch or build it again")
    total = sum(one.bytes for one in found.files.values())
    return Finding("files", "good", f"{len(found.files)} as built, {total / 1e6:.2f} MB")


def _runtime(found: SideCar) -> Finding:
    try:
        row = ENGINES.row(str(found.engine.get("kind"))).model_validate(found.engine)
    except ValidationError:
        raise Refused(f"{NAME} tells of settings that no engine of this version has: build it again") from None
    ours, wanted = row.environment()["runtime"], found.runtime
    install = f"pip install {wanted.replace(' ', '==')}"
    if ours == "missing":
        return Finding("runtime", "lacks", f"{wanted} is needed and none is installed: {install}")
    if ours == wanted:
        return Finding("runtime", "good", f"{wanted} is installed")
    if found.needs.runtime == "same":
        return Finding("runtime", "lacks", f"{ours} is installed, and this engine opens only in {wanted}: rebuild it here, or {install}")
    return Finding("runtime", "differs", f"{ours} is installed, it was built with {wanted}: rebuild to have the same speed and rounding")


def _cpu(found: SideCar, ours: dict[str, str]) -> list[Finding]:
    have = ours["instructions"].split()
    needed = found.needs.instructions
    lost = [name for name in found.device.instructions or [] if name not in have]
    findings = [_place("cpu", found.device.cpu, ours["cpu"])]
    if needed and not set(needed) & set(have):
        text = f"it computes with {' or '.join(needed)}, which this CPU has not: rebuild it in another precision"
        findings.append(Finding("instructions", "lacks", text))
    elif lost:
        text = f"built where there is {', '.join(lost)}, which this CPU has not: slower here, other rounding"
        findings.append(Finding("instructions", "differs", text))
    return findings


def _gpu(found: SideCar, ours: dict[str, str]) -> list[Finding]:
    device = found.device
    if "capability" not in ours:
        return [Finding("gpu", "lacks", f"built for {device.gpu}, and the driver shows no GPU here")]
    wanted, have = device.capability or "0.0", ours["capability"]
    fits = {"any": True, "same": have == wanted, "later": _numbers(have) >= _numbers(wanted)}[found.needs.capability]
    text = f"built for compute capability {wanted}, here is {have}: rebuild it here"
    findings = [_place("gpu", device.gpu, ours["gpu"])]
    if have != wanted:
        findings.append(Finding("capability", "differs", text) if fits else Finding("capability", "lacks", f"{text}, it does not open"))
    theirs, driver = device.driver or "0.0", ours["driver"]
    if _numbers(driver) < _numbers(theirs):
        # Within a major version of CUDA, older drivers run what newer ones do; across major versions they do not.
        state = "lacks" if _numbers(driver)[0] < _numbers(theirs)[0] else "differs"
        findings.append(
            Finding("driver", state, f"the driver speaks CUDA {driver}, it was built with {theirs}: update the driver or rebuild")
        )
    return findings


def _place(part: str, theirs: str | None, ours: str) -> Finding:
    if ours == theirs:
        return Finding(part, "good", ours)
    return Finding(part, "differs", f"built on {theirs}, here is {ours}: its times do not hold here, measure again")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
