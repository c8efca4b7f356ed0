"""Those that benchmarks/end_to_end.py races, each in a process of its own: a decoded image goes in, its class map comes out.

The parent asks in lines of JSON on the child's standard input: {"open": spec} opens a file, {"maps": FILE, "to": FILE} gives the class
maps of pictures, {"runs": n, ...} times n runs. So what is timed is what gave the maps that were judged. Only the conventional path
needs torch, and has it in its process.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline import errors  # noqa: E402
from stages import machine  # noqa: E402
from stages.engines import TABLE as ENGINES  # noqa: E402
from stages.engines import need  # noqa: E402
from stages.measure.process import Process  # noqa: E402

WARM_MS, WARM_RUNS, REWARM_RUNS = 2000, 5, 2  # before the first turn; before every other, for the others have had the caches


class Racer(NamedTuple):
    name: str
    runtime: str
    precision: str  # f32 | bf16 | int8 | int8+bf16: INT8, and what stayed float in bfloat16
    tail: str  # torch: interpolate + argmax; graph: inside the graph; native: the argmax kernel

    @property
    def exact(self) -> bool:
        return self.precision == "f32"

    def row(self) -> Any:
        """The product's engine that runs it."""
        settings = {"kind": self.runtime, "argmax": self.tail}
        if self.runtime == "openvino":
            settings["precision"] = "bf16" if "bf16" in self.precision else "f32"
        return ENGINES.row(self.runtime).model_validate(settings)


CONVENTIONAL = Racer("conventional: onnxruntime f32, torch", "onnxruntime", "f32", "torch")
OURS = [
    Racer(f"{runtime} {precision}, {tail}", runtime, precision, tail)
    for runtime, precision, tail in (
        ("onnxruntime", "f32", "graph"),
        ("onnxruntime", "f32", "native"),
        ("openvino", "f32", "graph"),
        ("openvino", "f32", "native"),
        ("openvino", "bf16", "native"),
        ("onnxruntime", "int8", "native"),
        ("openvino", "int8", "native"),
        ("openvino", "int8+bf16", "native"),
    )
]


def absent(racer: Racer) -> str | None:
    """Why this machine cannot run it."""
    if "bf16" in racer.precision and not machine.has_bf16():
        return f"{machine.cpu_name()} has no bfloat16 arithmetic"
    from kernels import arrays

    if racer.tail == "native" and (why := arrays.why_not()):
        return f"the compiled library cannot be used: {why}"
    packages = [racer.runtime] + (["nncf"] if racer.runtime == "openvino" and "int8" in racer.precision else [])
    missing = [name for name in packages if machine.version(name) == "missing"]
    return f"{' and '.join(missing)} not installed" if missing else None


# The sessions: image uint8 (H, W, 3) -> class map uint8 (H, W).


def opened(spec: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """`spec`: the racer's fields, what benchmarks/ready.py made for it, and threads."""
    racer, threads = Racer(*spec["racer"]), spec["threads"]
    if racer.tail == "torch":
        return conventional(spec, threads)
    session = racer.row().model_copy(update={"threads": threads}).open(Path(spec["folder"]), spec["facts"])
    return lambda image: session(image[None])[0]


def conventional(spec: dict[str, Any], threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """As most scripts do it: normalise in numpy, run the network, enlarge the logits and take their argmax in torch."""
    import torch
    from torch.nn.functional import interpolate

    torch.set_num_threads(threads)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    ort = need("onnxruntime", "pip install onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    session = ort.InferenceSession(spec["file"], options, providers=["CPUExecutionProvider"])
    name, (mean, std) = session.get_inputs()[0].name, (np.array(spec[key], np.float32) for key in ("mean", "std"))

    @torch.inference_mode()
    def run(image):
        x = np.ascontiguousarray(((image.astype(np.float32) - mean) / std).transpose(2, 0, 1))[None]
        logits = torch.from_numpy(session.run(["logits"], {name: x})[0])
        large = interpolate(logits, image.shape[:2], mode="bilinear", align_corners=spec["align_corners"])
        return large.argmax(1)[0].to(torch.uint8).numpy()

    return run


# The child, and the parent's side of it.


class Child(Process):
    """One racer's process. It opens one file after the other, and keeps the last one."""

    def __init__(self, racer: Racer, work: Path):
        self.racer = racer
        log = work / f"{racer.name.replace(' ', '_').replace(':', '')}.log"
        super().__init__(racer.name, ["-m", "benchmarks.racers"], log)

    def order(self, **asked: Any) -> dict[str, Any]:
        return self.ask(json.dumps(asked))

    def maps(self, pictures: Path) -> np.ndarray:
        """pictures: uint8 (N, H, W, 3) in a .npy file -> uint8 (N, H, W)."""
        passing = pictures.with_suffix(".maps.npy")
        self.order(maps=str(pictures), to=str(passing))
        maps = np.load(passing)
        passing.unlink()
        return maps


def main(asked, answer) -> None:
    session, images = None, []
    for line in asked:
        order = json.loads(line)
        try:
            if "open" in order:
                session = None  # the one before is freed first
                session = opened(order["open"])
                images = [np.array(image) for image in np.load(order["images"], mmap_mode="r")]
                warm(session, images, order["warm_ms"])
                answer({"modules": [name for name in ("torch", "onnxruntime", "openvino") if name in sys.modules]})
            elif "maps" in order:
                np.save(order["to"], np.stack([session(np.array(image)) for image in np.load(order["maps"], mmap_mode="r")]))
                answer({})
            else:
                answer(times(session, images, order["runs"]))
        except errors.Stillhouse as error:
            answer({"error": type(error).__name__, "message": str(error)})


def warm(session: Callable, images: list[np.ndarray], least_ms: float) -> None:
    began, done = time.perf_counter(), 0
    while done < (WARM_RUNS if least_ms else 1) or 1e3 * (time.perf_counter() - began) < least_ms:
        session(images[done % len(images)])
        done += 1


def times(session: Callable, images: list[np.ndarray], runs: int) -> dict[str, Any]:
    """Milliseconds of each run by the clock, and of the processor, over all threads of this process, in the mean: its clock is coarse."""
    for k in range(REWARM_RUNS):
        session(images[k % len(images)])
    found, cpu = [], time.process_time()
    for k in range(runs):
        began = time.perf_counter()
        session(images[k % len(images)])
        found.append(round(1e3 * (time.perf_counter() - began), 4))
    return {"ms": found, "cpu_ms": 1e3 * (time.process_time() - cpu) / runs}


if __name__ == "__main__":
    pipe = os.fdopen(os.dup(1), "w", buffering=1)  # runtimes print what they like; what goes back has a pipe of its own
    os.dup2(2, 1)
    main(sys.stdin, lambda what: print(json.dumps(what), file=pipe, flush=True))
