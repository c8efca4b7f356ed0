"""ONNX Runtime: runs the ONNX file as it is, on the CPU or through the CUDA and TensorRT providers.

The runtime falls back to the CPU when a provider does not load; here that is an error, found by reading the session back.
"""

import os
import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.artifact import Artifact
from pipeline.errors import Missing
from stages import machine, onnxfile
from stages.engines import Engine, answer, need, opening

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


class OnnxRuntime(Engine):
    kind: Literal["onnxruntime"]
    takes: ClassVar[str] = "OnnxModel"
    package: ClassVar[str] = "onnxruntime"

    provider: Literal["cpu", "cuda", "tensorrt"] = Field("cpu", description="What computes; it must load, there is no fallback.")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of one run; none: what the runtime chooses.")

    def requirements(self) -> list[str]:
        return [machine.version("onnxruntime", "onnxruntime-gpu").replace(" ", "==")]

    def environment(self) -> dict[str, str]:
        found = {"runtime": machine.version("onnxruntime", "onnxruntime-gpu"), "cpu": machine.cpu_name()}
        return found if self.provider == "cpu" else {**found, "gpu": ", ".join(gpu["name"] for gpu in machine.gpus()) or "none"}

    def build(self, source: Artifact, out: Path) -> dict[str, Any]:
        session = session_of(source.file("model.onnx"), self.provider, self.threads)  # fails here rather than when it is used
        shutil.copyfile(source.file("model.onnx"), out / "engine.onnx")
        return {"ran": session.ran}

    def open(self, folder: Path, facts: dict[str, Any]) -> "Session":
        return session_of(folder / "engine.onnx", self.provider, self.threads)


def session_of(path: Path, provider: str = "cpu", threads: int | None = None) -> "Session":
    """A session on an ONNX file, after a look at the file, with the provider read back."""
    onnxfile.check(path)
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
            "Install the CUDA, cuDNN (and TensorRT) versions this onnxruntime-gpu is built for, or write provider: cpu"
        )
    ran = {"runtime": f"onnxruntime {ort.__version__}", "provider": wanted, "precision": "as exported", "threads": threads}
    return Session(ort, session, "cpu" if provider == "cpu" else "cuda", ran)


class Session:
    def __init__(self, ort: Any, session: Any, device: str, ran: dict[str, Any]):
        self.ort, self.session, self.device, self.ran = ort, session, device, ran

    def __call__(self, images):
        return answer(lambda: self.session.run(["classmap"], {"image": images})[0], images)

    def bind(self, images):
        binding = self.session.io_binding()
        binding.bind_ortvalue_input("image", self.ort.OrtValue.ortvalue_from_numpy(images, self.device, 0))
        binding.bind_output("classmap", self.device)

        def run():
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run
