"""TensorRT 10.9 and newer, 10.x and 11.x alike: a plan for the GPU at hand, from one strongly typed network.

Precision stands in the ONNX file: no flag of TensorRT 10 that version 11 took away is ever set.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.artifact import Artifact
from stages import machine
from stages.engines import Engine, _nvinfer


class TensorRT(Engine):
    kind: Literal["tensorrt"]
    takes: ClassVar[str] = "OnnxModel"
    package: ClassVar[str] = "tensorrt"
    reproducible: ClassVar[bool] = False  # tactics are picked by timing them
    keeps_timing: ClassVar[bool] = True

    threads: None = Field(None, description="Nothing to set: a GPU computes.")
    batch: _nvinfer.Batch = (1, 1, 8)
    optimization_level: _nvinfer.Level = 3
    workspace_mb: _nvinfer.Workspace = None
    tf32: _nvinfer.Tf32 = False
    version_compatible: bool = Field(False, description="Whether newer versions of TensorRT may open the plan too; slower, and larger.")
    hardware_compatible: Literal["none", "ampere_plus", "same_compute_capability"] = Field(
        "none", description="Other GPUs that may open the plan: all from Ampere on, or those of equal compute capability; it is slower."
    )
    memory: _nvinfer.Memory = "auto"

    @classmethod
    def installed(cls) -> tuple[str, ...]:
        return _nvinfer.DISTRIBUTIONS["tensorrt"][0]

    def needs(self) -> dict[str, Any]:
        later = self.hardware_compatible == "ampere_plus"
        return {"runtime": "any" if self.version_compatible else "same", "capability": "later" if later else "same"}

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
