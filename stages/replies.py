"""What a target may say: the shape of every reply, for what comes over a network is not believed before it was looked at."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import Refused
from stages.sidecar import Words

LARGEST = 8 << 30  # bytes of one file of an engine


def checked(model: type[BaseModel], answer: dict[str, Any], name: str) -> Any:
    """What a target said, as one of the models below; Refused where it is not that."""
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(c for c in ".".join(str(part)[:40] for part in first["loc"]) if c.isprintable())
        raise Refused(f"target {name} does not speak as it should: {where}: {first['msg'][:120]}") from None


Number = Annotated[str, Field(pattern=r"^\d{1,3}\.\d{1,3}$")]


class Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Gpu(Plain):
    name: Words
    capability: Number
    memory_gb: float = Field(ge=0, le=1e5)


class Facts(Plain):
    """What a target says of itself: stages/machine.py's facts, and versions of packages."""

    cpu: Words
    cores: int = Field(ge=1, le=4096)
    instructions: Annotated[list[Words], Field(max_length=64)]
    memory_gb: float = Field(ge=0, le=1e6)
    platform: Words
    python: Words
    gpus: Annotated[list[Gpu], Field(max_length=32)]
    driver: Number | None
    compiler: Words  # of C, or none
    packages: Annotated[dict[Words, Words], Field(max_length=64)]


class File(Plain):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: int = Field(ge=0, le=LARGEST)


class Ran(Plain):
    runtime: Words
    provider: Words
    precision: Words
    threads: int | None
    memory: Words = "absent"
    argmax: Words = "absent"


class Network(Plain):
    """What stages/engines/_layers.py found there."""

    layers: int
    types: Annotated[dict[Words, dict[Words, int]], Field(max_length=200)]
    quantised: Annotated[dict[Words, int], Field(max_length=20)]
    plain: Annotated[list[Words], Field(max_length=100)]
    precision: Words


class Told(Plain):
    """Of a build by TensorRT, as stages/bundle_files/build_tensorrt.py tells it."""

    network: Network
    timing: Words
    warnings: Annotated[list[Words], Field(max_length=100)]
    skipped_tactics: int


class Built(Plain):
    files: Annotated[dict[Annotated[str, Field(pattern=r"^engine(\.[a-z0-9_]{1,20}){1,2}$")], File], Field(min_length=1, max_length=8)]
    ran: Ran
    told: Told | None = None


class Opened(Plain):
    """How logits become classes there, where the engine leaves that to us."""

    argmax: Literal["native", "graph of its own"] | None = None
    why: str = Field("", max_length=1000)


class Checked(Plain):
    """How a runner ended, and what it said."""

    code: int
    stdout: str
    stderr: str
