"""PyTorch itself, eager: the reference every other engine is compared with, built from a checkpoint rather than from ONNX."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pipeline.artifact import Artifact
from pipeline.errors import Missing
from stages import machine
from stages.engines import Engine

if TYPE_CHECKING:
    from torch import nn


class PyTorch(Engine):
    kind: Literal["pytorch"]
    version: ClassVar[int] = 2
    takes: ClassVar[str] = "Checkpoint"
    package: ClassVar[str] = "torch"

    precision: Literal["f32", "bf16"] = Field("f32", description="Arithmetic: float32, or bfloat16 through autocast.")
    device: Literal["cpu", "cuda"] = Field("cpu", description="What computes; there is no fallback.")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of one run; none: what the runtime chooses.")

    def environment(self) -> dict[str, str]:
        found = {"runtime": machine.version("torch"), "cpu": machine.cpu_name()}
        return found if self.device == "cpu" else {**found, "gpu": ", ".join(gpu["name"] for gpu in machine.gpus()) or "none"}

    def build(self, source: Artifact, out: Path) -> dict[str, Any]:
        shutil.copyfile(source.file("weights.safetensors"), out / "engine.safetensors")
        facts = {"model": source.facts["model"], "classes": source.facts["classes"]}
        return {**facts, "ran": self.open(out, facts).ran}

    def open(self, folder: Path, facts: dict[str, Any]) -> "Session":
        import torch

        from stages.models import TABLE as MODELS
        from stages.weights import load_into

        row = MODELS.row(facts["model"]["kind"]).model_validate(facts["model"])
        with torch.random.fork_rng(devices=[]):
            module = row.build(len(facts["classes"]))
        load_into(module, folder / "engine.safetensors")
        return session_of(module, self.precision, self.device, self.threads)


def session_of(module: "nn.Module", precision: str = "f32", device: str = "cpu", threads: int | None = None) -> "Session":
    """A session on a network that is loaded already. `threads` holds for the whole process."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise Missing(f"device: cuda asks for an NVIDIA GPU; torch {torch.__version__} finds none. Write device: cpu")
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    ran = {"runtime": f"torch {torch.__version__}", "provider": device, "precision": precision, "threads": threads}
    return Session(module.to(device).eval(), precision, device, ran)


class Session:
    def __init__(self, module: "nn.Module", precision: str, device: str, ran: dict[str, Any]):
        self.module, self.precision, self.device, self.ran = module, precision, device, ran

    def __call__(self, images):
        import torch

        return self._maps(torch.from_numpy(images).to(self.device)).cpu().numpy()

    def with_logits(self, images):
        import torch

        placed = torch.from_numpy(images).to(self.device)
        logits = self._logits(placed)
        return self._named(logits, placed).cpu().numpy(), logits

    def bind(self, images):
        import torch

        placed = torch.from_numpy(images).to(self.device)

        def run():
            self._maps(placed)
            if self.device == "cuda":
                torch.cuda.synchronize()

        return run

    def _maps(self, images):
        """uint8 (B, H, W, 3) tensor -> uint8 (B, H, W) tensor."""
        return self._named(self._logits(images), images)

    def _logits(self, images):
        """float32 or bfloat16 (B, C, h, w)"""
        import torch

        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.module(images.permute(0, 3, 1, 2).float().contiguous())["logits"]

    def _named(self, logits, images):
        import torch

        from stages.models import classmap

        with torch.inference_mode():
            return classmap(logits, tuple(images.shape[1:3]), self.module.align_corners)
