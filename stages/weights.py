"""Weights from elsewhere: safetensors only, checked against the network from the file's header before anything is allocated.

A pickle (.pt, .pth, .bin) runs whatever code lies in it when opened, so it is refused by content, whatever its name says.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from pipeline.errors import BadData, Diverged, Missing, Refused
from stages.tensorfile import PICKLES, advice, read_object
from stages.tensorfile import check as require_safetensors

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIGS = ("config.json", "preprocessor_config.json")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
LARGEST = {"config.json": 1 << 20, "preprocessor_config.json": 1 << 20, INDEX: 8 << 20}  # bytes
LONGEST_NAME = 200  # characters of a file that an index names
SHOWN = 10  # mismatches in one message


class Weights(BaseModel):
    """Where given weights come from: a file or folder on this machine, or one pinned revision on the Hugging Face hub."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    file: str | None = Field(None, min_length=1, description="A .safetensors file, or a folder written by save_pretrained.")
    hub: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")] | None = Field(
        None, description="org/name on the Hugging Face hub."
    )
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None = Field(
        None, description="The hub commit, 40 hex digits: a branch or tag may move, a commit does not."
    )

    @model_validator(mode="after")
    def one_place(self) -> Self:
        if (self.file is None) == (self.hub is None) or (self.hub is None) != (self.revision is None):
            raise ValueError("write either {file: PATH} or {hub: org/name, revision: 40 hex digits}")
        return self

    def digest(self) -> str:
        """What identifies these weights: the hub's commit, or the sha256 of what would be read."""
        if self.hub:
            return self.revision
        return digest(Path(self.file))

    def locate(self, also: tuple[str, ...] = ()) -> Path:
        """The file or folder on this disk; the only place that may use the network. `also`: names of further files wanted from the hub."""
        return hub_file(self.hub, self.revision, also) if self.hub else Path(self.file)


class Header(NamedTuple):
    """One tensor as the header of its file describes it."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]


def load_into(
    module: "nn.Module",
    source: "Path | dict[str, Tensor]",
    convert: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    allow_missing: tuple[str, ...] = (),
) -> list[str]:
    """Copies weights into a network, all or nothing. Returns the keys that kept their values: those under the prefixes `allow_missing`
    that the source lacks or holds in another shape (a head for other classes)."""
    import torch

    given = headers(source) if isinstance(source, Path) else source
    given = convert(given) if convert else given
    own = module.state_dict()
    missing = compare(own, given, allow_missing, where=str(source) if isinstance(source, Path) else "the given weights")
    with torch.no_grad():
        for key, value in values(given, own.keys() - set(missing)):
            own[key].copy_(value)
    return [key for key in missing if not key.endswith(COUNTER)]


def read_safetensors(path: Path) -> "dict[str, Tensor]":
    """All tensors of a file or of a save_pretrained folder."""
    found = headers(path)
    return dict(values(found, found.keys()))


def headers(path: Path) -> dict[str, Header]:
    """What a file or folder holds, from headers alone."""
    from safetensors import SafetensorError, safe_open

    found = {}
    for file in tensor_files(path):
        try:
            with safe_open(file, framework="pt") as f:
                for key in f.keys():  # noqa: SIM118 (not a mapping)
                    piece = f.get_slice(key)
                    found[key] = Header(file, key, piece.get_dtype(), tuple(piece.get_shape()))
        except (SafetensorError, OSError, ValueError) as e:
            raise Refused(f"{file} is not a sound safetensors file: {e}") from None
    return found


def save_checkpoint(folder: Path, state: "dict[str, Tensor]") -> None:
    """Writes weights.safetensors; weights that are not finite are never published."""
    import torch
    from safetensors.torch import save_file

    bad = [key for key, x in state.items() if x.is_floating_point() and not torch.isfinite(x).all()]
    if bad:
        raise Diverged(f"{len(bad)} of {len(state)} weights hold values that are not finite, the first is {bad[0]}; nothing was published")
    tensors = {key: x.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for key, x in state.items()}
    save_file(tensors, folder / "weights.safetensors", metadata={"format": "pt"})


def hub_file(name: str, revision: str, also: tuple[str, ...] = ()) -> Path:
    """A folder with the safetensors and configs of one commit on the hub, from the hub's cache where they are there already."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise Missing(f"weights from the hub ({name}) need huggingface_hub: pip install huggingface_hub") from None
    try:
        found = Path(snapshot_download(name, revision=revision, allow_patterns=["*.safetensors", INDEX, *CONFIGS, *also]))
    except Exception as e:  # whatever the network or the hub answers, the way out is the same
        why = str(e).strip().splitlines()[0][:200] if str(e).strip() else type(e).__name__
        raise Missing(
            f"{name} at {revision} could not be fetched from the hub ({why}); download it and write weights: {{file: FOLDER}}"
        ) from None
    if not any(found.glob("*.safetensors")):
        raise BadData(
            f"{name} at {revision} holds no safetensors, and pickles are not read: take a revision that has them (the hub's converter "
            "opens pull requests with such files), or convert them once and write weights: {file: FOLDER}"
        )
    return found


def config_beside(path: Path, name: str) -> dict[str, Any] | None:
    """config.json or preprocessor_config.json in a folder of weights, or beside a file of them."""
    file = (path if path.is_dir() else path.parent) / name
    if not file.is_file():
        return None
    return read_object(contained(file), LARGEST[name])


# Files


def digest(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    files = [*tensor_files(path), *(contained(folder / name) for name in (INDEX, *CONFIGS) if (folder / name).is_file())]
    lines = [f"{sha256(file)} {file.name}" for file in files]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def tensor_files(path: Path) -> list[Path]:
    """The safetensors files behind a path, each looked into far enough to know that it is one."""
    if path.is_file():
        files = [path]
    elif not path.is_dir():
        found = "is no plain file" if path.exists() else f"was not found (looked from {Path.cwd()})"
        raise BadData(f"weights: {path} {found}")
    elif (path / INDEX).is_file():
        files = shards(path)
    elif (path / SINGLE).exists():
        files = [contained(path / SINGLE)]
    else:
        files = [only_one(path)]
    for file in files:
        require_safetensors(file)
    return files


def only_one(folder: Path) -> Path:
    names = sorted(p.name for p in folder.iterdir())
    found = [n for n in names if n.endswith(".safetensors")]
    pickles = [n for n in names if n.endswith(PICKLES)]
    if not found and pickles:
        raise Refused(advice(folder / pickles[0]))
    if len(found) != 1:
        raise BadData(f"{folder} holds {len(found)} safetensors files and no {SINGLE}: name the file itself")
    return contained(folder / found[0])


def shards(folder: Path) -> list[Path]:
    index = config_beside(folder, INDEX)
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise Refused(f"{folder / INDEX} must map each weight to a file (weight_map)")
    files = []
    for name in sorted(set(names.values())):
        if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable() or len(name) > LONGEST_NAME:
            raise Refused(f"{folder / INDEX} names {name[:LONGEST_NAME]!r}: only files of that folder are read")
        files.append(contained(folder / name))
    return files


def contained(file: Path) -> Path:
    """A plain file of its folder. Links are refused, except those of the hub's cache, which keeps snapshots as links into its blobs/."""
    if file.is_symlink():
        blobs = file.parent.parent.parent / "blobs"
        if file.parent.parent.name != "snapshots" or blobs.is_symlink() or file.resolve().parent != blobs.resolve():
            raise Refused(f"{file} is a link that leads out of its folder; put the file itself there")
    if not file.is_file():
        raise BadData(f"{file} was not found, or is not a plain file")
    return file


# Comparing and reading

COUNTER = "num_batches_tracked"  # counts training steps of BatchNorm; no result depends on it, and older files lack it
FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}  # safetensors' names, and torch's
INTEGERS = {"I64", "I32", "I16", "I8", "U8", "int64", "int32", "int16", "int8", "uint8"}


def compare(own: "dict[str, Tensor]", given: dict[str, Any], allow_missing: tuple[str, ...], where: str) -> list[str]:
    """The keys of `own` that stay as they are; raises when anything else than those does not fit."""
    lines, missing, pairs = [], [], []
    for key, ours in own.items():
        theirs = given.get(key)
        if theirs is None:
            if not key.startswith(allow_missing) and not key.endswith(COUNTER):
                lines.append(f"{key}: expected {spoken(ours)}, found nothing")
            missing.append(key)
        elif tuple(theirs.shape) != tuple(ours.shape):
            if not key.startswith(allow_missing):
                lines.append(f"{key}: expected {spoken(ours)}, found {spoken(theirs)}")
                pairs.append((tuple(ours.shape), tuple(theirs.shape)))
            missing.append(key)
        elif family(theirs) != family(ours):
            lines.append(f"{key}: expected {spoken(ours)}, found {spoken(theirs)}")
    strange = [f"{key}: expected nothing, found {spoken(given[key])}" for key in given if key not in own]
    half = max(SHOWN - len(strange), SHOWN // 2)  # of many both kinds are seen: the names that the file has tell what it is
    lines = lines[:half] + strange + lines[half:]
    if lines:
        raise BadData(mismatch(lines, pairs, where))
    return missing


def mismatch(lines: list[str], pairs: list[tuple[tuple, tuple]], where: str) -> str:
    """One message of all that does not fit. `pairs`: expected and found shape where only the shapes differ."""
    text = f"{where} does not fit the model, {len(lines)} weights differ:\n  " + "\n  ".join(lines[:SHOWN])
    if len(lines) > SHOWN:
        text += f"\n  ... and {len(lines) - SHOWN} more"
    if len(pairs) == len(lines) and all(a and b and a[1:] == b[1:] for a, b in pairs) and len({(a[0], b[0]) for a, b in pairs}) == 1:
        expected, found = pairs[0][0][0], pairs[0][1][0]
        text += f"\nOnly the last layer differs: these weights know {found} classes, the data has {expected}."
        if abs(expected - found) == 1:
            text += " One apart: is a background class counted in one of them?"
    return text


def spoken(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def family(value: Any) -> str:
    """Types between which weights may be cast: a half precision checkpoint fits a float32 network."""
    name = str(value.dtype).removeprefix("torch.")
    return "float" if name in FLOATS else "integer" if name in INTEGERS else name


def values(given: dict[str, Any], keys: Any):
    """(key, tensor) one by one; those described by a header are read only now."""
    from contextlib import ExitStack

    from safetensors import safe_open

    with ExitStack() as stack:
        files = {}
        for key in sorted(keys):
            value = given.get(key)
            if not isinstance(value, Header):
                yield key, value
                continue
            if value.file not in files:
                files[value.file] = stack.enter_context(safe_open(value.file, framework="pt"))
            yield key, files[value.file].get_tensor(value.key)
