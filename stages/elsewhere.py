"""Builds, runs and times engines on another machine, the one they are made for; what comes back is checked, and never opened here.

Files lie in the target's work folder under the sha256 of their content, so that whatever was cut short goes on from what is there.
"""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import fsops
from pipeline.artifact import Artifact
from pipeline.errors import BadData, Missing, Refused
from pipeline.stage import Job
from pipeline.targets import Asked, Target
from stages import machine, replies, sidecar
from stages.engines import TABLE as ENGINES
from stages.engines import Engine
from stages.link import Link

if TYPE_CHECKING:
    import numpy as np

HERE = Path(__file__).parent
ARGMAX = HERE.parent / "kernels/upsample_argmax/argmax.c"
SHARED = {"tensorrt_rtx": "tensorrt"}  # kinds of engines that the same files build and open
CHUNK = 1 << 20  # bytes of a file in one message
BUILD_S = 6 * 3600  # longest build
CHECK_S = 600  # longest run of a packed runner
SLOWEST_MS = 3.6e6  # of one run
TIMES = ("image_ms", "image_cpu_ms", "engine_ms", "engine_cpu_ms")  # a processor's clock may stand still during a short run

BESIDE = {"numpy", "pillow", "cuda-python", "cuda-bindings", "pycuda", "tensorrt-rtx-cu13-libs"}  # asked for besides the runtimes


def builder(kind: str) -> Path:
    """The file that builds this kind of engine on a target. It may not be there: then the kind is not built there."""
    return HERE / "target_files" / f"build_{SHARED.get(kind, kind)}.py"


def runner(kind: str) -> Path:
    """The file that opens it there: the same as in a bundle. It may not be there: then the kind runs only with this package."""
    return HERE / "bundle_files" / f"runtime_{SHARED.get(kind, kind)}.py"


def programs(kind: str) -> dict[str, bytes]:
    """All that is sent to build this kind, by the names under which the builder finds it."""
    found = {"builder": builder(kind), "runtime": runner(kind)}
    if SHARED.get(kind, kind) == "tensorrt":
        found |= {"planner": HERE / "bundle_files/build_tensorrt.py", "layers": HERE / "engines/_layers.py"}
    return {name: file.read_bytes() for name, file in found.items()}


def facts_of(name: str, target: Target) -> dict[str, Any]:
    """Asks the target, once per run."""
    link = Link(name, target)
    try:
        return _hello(link)
    finally:
        link.end()


def environment(there: Asked, row: Engine) -> dict[str, str]:
    """What changes an engine's result besides its settings, as on this machine."""
    facts, ours = there.facts, row.environment()
    found = {"runtime": row.runtime(versions(facts))} | ({"cpu": facts["cpu"]} if "cpu" in ours else {})
    found |= {"compiler": facts["compiler"]} if row.argmax == "native" else {}
    return found | sidecar.device_facts(facts, "gpu" in ours)


def versions(facts: dict[str, Any]) -> Callable[..., str]:
    """stages/machine.py's version(*distributions), of a target."""
    packages = facts["packages"]
    return lambda *names: next((found for name in names if (found := packages.get(name, "missing")) != "missing"), "missing")


def described(there: Asked | None) -> dict[str, str]:
    """A target's facts as they belong to the key of what is measured there."""
    return {f"target {key}": str(value) for key, value in there.facts.items()} if there else {}


def tried(folder: Path, job: Job) -> tuple[int, str, str]:
    """Has a bundle tried out on the target by its own runner; how that ended and what it said."""
    there = There(job)
    files = {file.name: fsops.sha256(file)[1] for file in sorted(folder.iterdir())}
    for name, sha256 in files.items():
        there.send(folder / name, _folder(files), name, sha256)
    answer, _ = there.link.ask("check", within=CHECK_S + 60, folder=_folder(files), limit_s=CHECK_S)
    there.end()
    found = replies.checked(replies.Checked, answer, there.target)
    return found.code, *("\n".join(map(there.link.plain, text.splitlines())) for text in (found.stdout, found.stderr))


def strangers(target: str | None, built: dict[str, str | None]) -> list[tuple[tuple, str]]:
    """What is wrong with measuring, on `target`, engines that were built there or elsewhere. `built`: stage -> its target."""
    found = [
        (("target",), f"{name} is built on target {where} and opened nowhere else: write target: {where}")
        for name, where in built.items()
        if where not in (None, target)
    ]
    if target is not None and target not in built.values():
        found.append((("target",), f"nothing that is measured is built on {target}: leave target out"))
    return found


class There:
    """One process on the target, which holds one engine: called like any session (images to class maps)."""

    def __init__(self, job: Job):
        there: Asked = job.target
        self.target, self.facts, self.say = there.name, there.facts, job.say
        self.link = Link(there.name, there.target, job.stop_asked)
        if _hello(self.link) != there.facts:
            raise Missing(f"target {there.name} is not what it was when the run began (its packages or devices changed): run again")

    def build(self, row: Engine, source: Artifact, out: Path, state: Path) -> dict[str, Any]:
        """Writes the engine's files, built there, into `out`, and opens it there; returns facts as Engine.build does.

        What lies in `out` beforehand (a timing cache) is there when it builds.
        """
        from stages import onnxfile

        settings, file = row.model_dump(mode="json"), onnxfile.check(source.file("model.onnx"))
        network, tail = row.cut(source, out) if row.argmax == "native" else (row.network(source), None)
        if network is not None:
            file = state / "model.onnx"
            file.write_bytes(network)
        sent = programs(row.kind)
        given = {one.name: fsops.sha256(one)[1] for one in (file, *sorted(out.glob("engine.*")))}
        for name, sha256 in given.items():
            self.send(file if name == file.name else out / name, sha256, name, sha256)
        if network is not None:
            file.unlink()
        key = _digest([given, settings, {name: hashlib.sha256(content).hexdigest() for name, content in sent.items()}, self.facts])
        asked = {"given": given, "key": key, "settings": settings, "programs": {name: len(content) for name, content in sent.items()}}
        answer, _ = self.link.ask("build", b"".join(sent.values()), within=BUILD_S, **asked)
        made = replies.checked(replies.Built, answer, self.target)
        facts = self._told(made, settings, source)
        folder = _folder({name: one.sha256 for name, one in made.files.items()})
        for name, one in made.files.items():
            self.fetch(folder, name, one, out / name, state)
        opened = self._open(settings, folder, len(source.facts["classes"]), tail)
        self.ran = made.ran.model_dump(exclude_unset=True) | {"place": f"target {self.target}"} | opened
        facts |= {"tail": tail} if tail else {}
        device = sidecar.device_facts(self.facts, "gpu" in row.environment())
        return {**facts, "ran": self.ran, "foreign": {"target": self.target, "device": device}}

    def _told(self, made: replies.Built, settings: dict[str, Any], source: Artifact) -> dict[str, Any]:
        if made.told is None:
            return {}
        from stages.engines import _nvinfer

        told = made.told.model_dump()
        _nvinfer.agreeing(told["network"], source)
        gpus = ", ".join(f"{gpu['name']} ({gpu['capability']})" for gpu in self.facts["gpus"])
        return _nvinfer.facts_of(settings, told, made.ran.runtime, gpus) | {"opened": True}

    def open(self, artifact: Artifact, threads: int | None = None) -> None:
        """Sends what the target lacks of an engine that was built there before, and opens it."""
        built, settings = artifact.facts["foreign"]["target"], dict(artifact.facts["engine"])
        if built != self.target:
            raise Refused(f"{artifact.name} was built on target {built} and is opened only there, not on {self.target}")
        settings["threads"] = threads or settings.get("threads")
        files = {name: one.sha256 for name, one in sidecar.read(artifact.folder).files.items()}
        for name, sha256 in files.items():
            self.send(artifact.file(name), _folder(files), name, sha256)
        opened = self._open(settings, _folder(files), len(artifact.facts["classes"]), artifact.facts.get("tail"))
        self.ran = artifact.facts["ran"] | {"threads": settings["threads"]} | opened

    def _open(self, settings: dict[str, Any], folder: str, classes: int, tail: dict[str, Any] | None) -> dict[str, str]:
        """{}, or {"argmax": who names the classes of logits there}."""
        self.classes, sent = classes, {"runtime": runner(settings["kind"]).read_bytes()}
        if tail:
            sent |= {"argmax": (HERE / "bundle_files/argmax.py").read_bytes(), "argmax.c": ARGMAX.read_bytes()}
        asked = {"folder": folder, "settings": settings, "programs": {name: len(content) for name, content in sent.items()}, "tail": tail}
        opened = replies.checked(replies.Opened, self.link.ask("open", b"".join(sent.values()), **asked)[0], self.target)
        if (opened.argmax is None) != (tail is None):
            raise Refused(f"target {self.target} does not say how it takes the argmax: it does not speak as it should")
        if opened.why:
            self.say(f"target {self.target} takes the argmax in a graph, more slowly than in C: {self.link.plain(opened.why)}")
        return {"argmax": opened.argmax} if tail else {}

    def __call__(self, images: "np.ndarray") -> "np.ndarray":
        import numpy as np

        shape = images.shape[:3]
        answer, data = self.link.ask("maps", images.tobytes(), due=math.prod(shape), shape=list(images.shape))
        found = np.frombuffer(data, np.uint8).reshape(shape)
        if answer != {"shape": list(shape), "dtype": "uint8"} or found.max(initial=0) >= self.classes:
            what = f"{answer.get('dtype')} {answer.get('shape')} up to {found.max(initial=0)}"[:120]
            raise BadData(f"target {self.target} gives {what}, not uint8 {list(shape)} below {self.classes}: build it again")
        return found

    def end(self) -> None:
        self.link.end()

    # -- files, each from where it stopped last time

    def send(self, file: Path, folder: str, name: str, sha256: str) -> None:
        size, sent = file.stat().st_size, 0
        asked = {"folder": folder, "name": name, "sha256": sha256, "size": size}
        have = self._have(self.link.ask("put", at=0, **asked)[0], size)
        with file.open("rb") as content:
            while have < size:
                content.seek(have)
                piece = content.read(CHUNK)
                sent += len(piece)
                if sent > 3 * size + CHUNK:  # what was there before was of another file: once more, and not forever
                    raise Refused(f"target {self.target} never has the whole of {name}: look at its disk")
                have = self._have(self.link.ask("put", piece, at=have, **asked)[0], size)

    def _have(self, answer: dict[str, Any], size: int) -> int:
        have = answer.get("have")
        if type(have) is not int or not 0 <= have <= size:
            raise Refused(f"target {self.target} says it holds {str(have)[:40]} of {size} bytes: it does not speak as it should")
        return have

    def fetch(self, folder: str, name: str, expected: replies.File, file: Path, state: Path) -> None:
        part = state / f"{expected.sha256}.part"
        have = part.stat().st_size if part.exists() else 0
        if have > expected.bytes:
            part.unlink()
            have = 0
        with part.open("ab") as into:
            while have < expected.bytes:
                size = min(CHUNK, expected.bytes - have)
                _, piece = self.link.ask("get", due=size, folder=folder, name=name, at=have, size=size)
                into.write(piece)
                have += len(piece)
        if fsops.sha256(part)[1] != expected.sha256:
            part.unlink()
            raise Refused(f"target {self.target} sent something else than the {name} it built (its sha256 differs): run again")
        part.rename(file)


class Timer(There):
    """A session whose runs are timed there, asked as stages/measure/latency.py's Child is."""

    def __init__(self, artifact: Artifact, job: Job, images: "list[np.ndarray]", size: Any, warmup_ms: int, threads: int | None):
        super().__init__(job)
        self.name, self.modules = artifact.name, []  # of this process: none
        self.open(artifact, threads)
        self.ran = self.ran | {"threads": self.ran["threads"] or self.facts["cores"]}
        self.content, shapes = b"".join(image.tobytes() for image in images), [list(image.shape) for image in images]
        self.given = {"shapes": shapes, "size": size and list(size), "warmup_ms": warmup_ms}

    def opened(self) -> None:
        """It was opened when it was made."""

    def warm(self) -> None:
        self.link.ask("prepare", self.content, **self.given)

    def timed(self, runs: int) -> dict[str, list[float]]:
        found, _ = self.link.ask("time", runs=runs)
        for key in TIMES:
            values = found.get(key)
            if not isinstance(values, list) or len(values) != runs or not all(type(v) is float and 0 <= v < SLOWEST_MS for v in values):
                raise Refused(f"target {self.target} gives no {runs} times in {key}: it does not speak as it should")
        return {key: found[key] for key in TIMES}


def session(artifact: Artifact, job: Job) -> Any:
    """Any predictor as a session: an engine that was built on the stage's target runs there."""
    from stages.measure.predict import open_session

    if "foreign" not in artifact.facts or job.target is None:
        return open_session(artifact)
    there = There(job)
    there.open(artifact)
    return there


def _hello(link: Link) -> dict[str, Any]:
    packages = sorted({name for row in ENGINES.rows().values() for name in row.installed()} | BESIDE)
    answer, _ = link.ask("hello", workdir=link.target.workdir, packages=packages)
    facts = replies.checked(replies.Facts, answer, link.name).model_dump()
    if set(facts["packages"]) != set(packages) or not set(facts["instructions"]) <= set(machine.INSTRUCTIONS):
        raise Refused(f"target {link.name} speaks of packages or instructions it was not asked for: it does not speak as it should")
    return facts


def _folder(files: dict[str, str]) -> str:
    """Where an engine of these files (name -> sha256) lies in the work folder."""
    return _digest(files)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
