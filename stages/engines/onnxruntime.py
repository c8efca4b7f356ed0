"""ONNX Runtime: runs the ONNX file on the CPU, its last step in the form that is fastest there, or as it is through CUDA.

The runtime falls back to the CPU when a provider does not load; here that is an error, found by reading the session back. Which nodes a
provider that did load leaves to the CPU is not read back.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.artifact import Artifact
from pipeline.errors import Missing
from stages import machine, onnxfile
from stages.engines import Engine, _forms, _tail, answer, need, opening

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntime(Engine):
    kind: Literal["onnxruntime"]
    version: ClassVar[int] = 3
    takes: ClassVar[str] = "OnnxModel"
    package: ClassVar[str] = "onnxruntime"

    provider: Literal["cpu", "cuda"] = Field("cpu", description="What computes; it must load, there is no fallback.")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of one run; none: what the runtime chooses.")

    @classmethod
    def installed(cls) -> tuple[str, ...]:
        return ("onnxruntime", "onnxruntime-gpu")

    def requirements(self, version: Callable[..., str] = machine.version) -> list[str]:
        if self.provider == "cpu":
            return [version("onnxruntime", "onnxruntime-gpu").replace(" ", "==")]
        # Its wheel holds neither CUDA nor cuDNN. Here torch brings them.
        return [version("onnxruntime-gpu", "onnxruntime").replace("onnxruntime-gpu ", "onnxruntime-gpu[cuda,cudnn]==").replace(" ", "==")]

    def environment(self) -> dict[str, str]:
        found = {"runtime": machine.version("onnxruntime", "onnxruntime-gpu"), "cpu": machine.cpu_name()}
        return found if self.provider == "cpu" else {**found, "gpu": ", ".join(gpu["name"] for gpu in machine.gpus()) or "none"}

    def no_native(self) -> str:
        return "" if self.provider == "cpu" else f"provider {self.provider} leaves its logits on the GPU, where the C does not run"

    def build(self, source: Artifact, out: Path) -> dict[str, Any]:
        file, facts = onnxfile.check(source.file("model.onnx")), {}
        if self.provider != "cpu":
            shutil.copyfile(file, out / "engine.onnx")
            return {"ran": self.open(out, facts).ran}
        with opening(file, "onnx", file.stat().st_size):
            if self.argmax == "native":
                network, facts["tail"] = self.cut(source, out)
            else:
                network = self.network(source)
        (out / "engine.onnx").write_bytes(network)
        return {**facts, "ran": self.open(out, facts).ran}

    def network(self, source: Artifact) -> bytes | None:
        return _forms.suited(source, _forms.classes_last) if self.provider == "cpu" else None

    def cut(self, source: Artifact, out: Path) -> tuple[bytes, dict[str, Any]]:
        return _tail.cut(source, out, _forms.classes_last)

    def open(self, folder: Path, facts: dict[str, Any]) -> "Session":
        tail = _tail.Tail(facts["tail"], self.threads) if self.argmax == "native" else None
        return session_of(folder / "engine.onnx", self.provider, self.threads, tail)


def session_of(path: Path, provider: str = "cpu", threads: int | None = None, tail: _tail.Tail | None = None) -> "Session":
    """A session on an ONNX file, after a look at the file, with the provider read back. With a tail, the file ends at the logits."""
    onnxfile.check(path, ends_at_logits=tail is not None)
    if provider != "cpu" and not machine.has_device():
        raise Missing(f"provider: {provider} asks for an NVIDIA GPU, and the driver shows none on this machine; write provider: cpu")
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # since 1.29 the runtime tells its makers of every model it opens unless this is set
    ort = need("onnxruntime", "pip install onnxruntime" if provider == "cpu" else "pip install onnxruntime-gpu")
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise Missing(
            f"provider: {provider} is not part of the installed onnxruntime; pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        )
    if provider != "cpu":
        ort.preload_dlls()  # finds the CUDA libraries that came as Python packages
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    # Strict float32 on CUDA: TensorFloat-32 would round every product to 10 bits.
    providers = [(wanted, {"use_tf32": "0"} if provider == "cuda" else {})]
    with opening(path, "onnxruntime", path.stat().st_size if provider == "cpu" else None):
        session = ort.InferenceSession(path, options, providers=providers)
    if session.get_providers()[0] != wanted:
        raise Missing(
            f"provider: {provider} was asked for, the session runs on {session.get_providers()[0]}: the provider's libraries did not load. "
            "Install the CUDA and cuDNN versions this onnxruntime-gpu is built for (pip install 'onnxruntime-gpu[cuda,cudnn]'), "
            "or write provider: cpu"
        )
    ran = {"runtime": f"onnxruntime {ort.__version__}", "provider": wanted, "precision": "as exported", "threads": threads}
    ran |= {"argmax": "native" if tail else "graph"}
    return Session(ort, session, "cpu" if provider == "cpu" else "cuda", ran, tail)


class Session:
    def __init__(self, ort: Any, session: Any, device: str, ran: dict[str, Any], tail: _tail.Tail | None):
        self.ort, self.session, self.device, self.ran, self.tail = ort, session, device, ran, tail

    def __call__(self, images):
        if self.tail:
            return answer(lambda: self._named(self._placed(images), self.tail.room(images)), images)
        return answer(lambda: self.session.run(["classmap"], {"image": images})[0], images)

    @property
    def with_logits(self):
        """Only of a file that gives both."""
        if self.tail or "logits" not in {output.name for output in self.session.get_outputs()}:
            return None
        return lambda images: self.session.run(["classmap", "logits"], {"image": images})

    def bind(self, images):
        placed = self._placed(images)
        if self.tail:
            room = self.tail.room(images)
            return lambda: self._named(placed, room)
        binding = self.session.io_binding()
        binding.bind_ortvalue_input("image", placed)
        binding.bind_output("classmap", self.device)

        def run():
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run

    def _placed(self, images):
        """The images where the engine reads them; on a CPU that is where they are."""
        import numpy as np

        return self.ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(images), self.device, 0)

    def _named(self, placed, room):
        logits = self.session.run_with_ort_values(["logits"], {"image": placed})[0]  # holds the memory that its numpy() shows
        return self.tail(logits.numpy(), room)
