"""TensorRT-RTX: the same network and the same code as the row tensorrt, on a module that builds without a GPU.

Its plans are finished by the GPU that opens them, so one plan serves several generations; it measures nothing while it builds and keeps
no timing cache. Version- and hardware-compatible plans are an affair of TensorRT: here `targets` says what a plan is for.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.artifact import Artifact
from stages import machine
from stages.engines import Engine, _nvinfer


class TensorRtx(Engine):
    kind: Literal["tensorrt_rtx"]
    takes: ClassVar[str] = "OnnxModel"
    package: ClassVar[str] = "tensorrt_rtx"
    reproducible: ClassVar[bool] = False  # the GPU that opens a plan picks what it runs

    threads: None = Field(None, description="Nothing to set: a GPU computes.")
    batch: _nvinfer.Batch = (1, 1, 8)
    optimization_level: _nvinfer.Level = 3
    workspace_mb: _nvinfer.Workspace = None
    tf32: _nvinfer.Tf32 = False
    targets: tuple[Literal["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"], ...] = Field(
        (), strict=False, description="Compute capabilities the plan is for; none: whatever the runtime makes portable, Ampere and newer."
    )
    memory: _nvinfer.Memory = "auto"

    @classmethod
    def installed(cls) -> tuple[str, ...]:
        return _nvinfer.DISTRIBUTIONS["tensorrt_rtx"][0]

    def needs(self) -> dict[str, Any]:
        return {"runtime": "same"}  # and any GPU among its targets, which the runtime alone can tell

    def requirements(self, version: Callable[..., str] = machine.version) -> list[str]:
        return _nvinfer.requirements(self.model_dump(), version)

    def runtime(self, version: Callable[..., str]) -> str:
        return _nvinfer.runtime(self.kind, version)

    def environment(self) -> dict[str, str]:
        return _nvinfer.environment(self.kind)

    def build(self, source: Artifact, out: Path) -> dict[str, Any]:
        return _nvinfer.build(self.model_dump(), source, out)

    def open(self, folder: Path, facts: dict[str, Any]) -> _nvinfer.Session:
        return _nvinfer.open_session(self.model_dump(), folder, facts)
