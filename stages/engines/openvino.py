"""OpenVINO on the CPU, in float32 or with bfloat16 arithmetic inside.

On CPUs with bfloat16 the runtime would choose it unasked; the precision is therefore always set, and read back.
A network compiled for any batch ran 1.5 to 1.8 times slower than one compiled for the batch at hand (SegFormer-B0 256x512,
one thread, OpenVINO 2026.4), so a session compiles once for each batch size it meets.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.artifact import Artifact
from pipeline.errors import Missing
from stages import machine, onnxfile
from stages.engines import Engine, _forms, _ir, _tail, answer, need, opening

TYPES = {"f32": "float32", "bf16": "bfloat16"}  # as the runtime prints them


class OpenVino(Engine):
    kind: Literal["openvino"]
    version: ClassVar[int] = 3
    takes: ClassVar[str] = "OnnxModel"
    package: ClassVar[str] = "openvino"

    precision: Literal["f32", "bf16"] = Field("f32", description="Arithmetic inside the engine; weights are stored as exported.")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of one run; none: what the runtime chooses.")

    def needs(self) -> dict[str, Any]:
        return {"instructions": list(machine.BF16)} if self.precision == "bf16" else {}

    def requirements(self, version: Callable[..., str] = machine.version) -> list[str]:
        return [version("openvino").replace(" ", "==")]

    def environment(self) -> dict[str, str]:
        return {"runtime": machine.version("openvino"), "cpu": machine.cpu_name(), "instructions": " ".join(machine.instructions())}

    def no_native(self) -> str:
        return ""

    def build(self, source: Artifact, out: Path) -> dict[str, Any]:
        file, facts = onnxfile.check(source.file("model.onnx")), {}
        ov, size = silent(), file.stat().st_size
        with opening(file, "onnx", size):
            if self.argmax == "native":
                network, facts["tail"] = self.cut(source, out)
            else:
                network = self.network(source) or file.read_bytes()
        with tempfile.TemporaryDirectory(dir=out) as folder, opening(file, "openvino", size):
            (Path(folder) / "network.onnx").write_bytes(network)  # read as bytes, a broken one is told of in other words
            ov.save_model(core().read_model(Path(folder) / "network.onnx"), out / "engine.xml", compress_to_fp16=False)
        return {**facts, "ran": self.open(out, facts).ran}

    def network(self, source: Artifact) -> bytes | None:
        """That form compares values for equality, which bfloat16 may round in one place and not in another."""
        return _forms.suited(source, _forms.where_the_maximum_is) if self.precision == "f32" else None

    def cut(self, source: Artifact, out: Path) -> tuple[bytes, dict[str, Any]]:
        return _tail.cut(source, out, _forms.where_the_maximum_is)

    def open(self, folder: Path, facts: dict[str, Any]) -> "Session":
        if self.precision == "bf16" and not machine.has_bf16():
            raise Missing(f"precision: bf16 asks for a CPU with bfloat16 arithmetic; {machine.cpu_name()} has none. Write precision: f32")
        tail = _tail.Tail(facts["tail"], self.threads) if self.argmax == "native" else None
        return Session(silent(), _ir.check(folder), self.precision, self.threads, tail)


def silent() -> Any:
    """OpenVINO without the package through which its import calls a server of its makers and writes to the user's home."""
    sys.modules.setdefault("openvino_telemetry", None)
    return need("openvino", "pip install openvino")


@cache
def core() -> Any:
    """The runtime's root: one for the process, for good.

    Each (2026.4) puts a stack of its own in place for signals, and at its end the one that it found. Of two that end in the order in
    which they began, the second would put back the stack of the first, which is gone: the next signal, a Ctrl-C, would end the process.
    """
    return silent().Core()


class Session:
    def __init__(self, ov: Any, path: Path, precision: str, threads: int | None, tail: _tail.Tail | None):
        self.ov, self.path, self.tail = ov, path, tail
        with opening(path, "openvino", self._size()):
            self.model = core().read_model(path)
        self.settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            self.settings["INFERENCE_NUM_THREADS"] = threads
        self.compiled = {}  # batch size -> compiled network
        self.requests = {}  # batch size -> where calls run; bind() makes its own
        ran = self._compiled(1).get_property("INFERENCE_PRECISION_HINT").to_string()
        if ran not in (precision, TYPES[precision]):
            raise Missing(
                f"precision: {precision} was asked for, openvino compiled {ran} on {machine.cpu_name()}; ask for what this CPU has"
            )
        self.ran = {"runtime": machine.version("openvino"), "provider": "CPU", "precision": precision, "threads": threads}
        self.ran |= {"argmax": "native" if tail else "graph"}

    def __call__(self, images):
        batch = len(images)
        if batch not in self.requests:
            self.requests[batch] = self._compiled(batch).create_infer_request()
        request = self.requests[batch]
        if self.tail:
            return answer(lambda: self._named(request, {"image": images}, self.tail.room(images)), images)
        return answer(lambda: request.infer({"image": images}, share_inputs=True)["classmap"], images)

    def bind(self, images):
        request = self._compiled(len(images)).create_infer_request()
        request.set_tensor("image", self.ov.Tensor(images, shared_memory=False))
        if self.tail:
            room = self.tail.room(images)
            return lambda: self._named(request, None, room)
        return request.infer

    def _named(self, request, given, room):
        logits = request.infer(given, share_inputs=True, share_outputs=True)["logits"]  # the runtime's own memory, until it runs again
        return self.tail(logits, room)

    def _compiled(self, batch: int):
        if batch not in self.compiled:
            with opening(self.path, "openvino", self._size()):
                model = self.model.clone()
                model.reshape({"image": [batch, *list(model.input("image").partial_shape)[1:]]})
                self.compiled[batch] = core().compile_model(model, "CPU", self.settings)
        return self.compiled[batch]

    def _size(self) -> int:
        return sum(file.stat().st_size for file in (self.path, self.path.with_suffix(".bin")))
