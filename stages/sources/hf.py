"""Hugging Face datasets: local parquet or arrow files, or a hub id pinned to a commit; their pixels are written into the artifact."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.errors import BadData, Missing
from stages.sources import Source

Split = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]


class Hf(Source):
    kind: Literal["hf"] = "hf"
    version: ClassVar[int] = 2
    files: dict[Split, list[str]] | None = Field(None, description="Split -> local .parquet or .arrow files; * in a file name is expanded.")
    hub: str | None = Field(None, description="Dataset id on the hub, org/name; needs `revision` and the network.")
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$", description="Commit of the hub dataset, 40 hex digits.")
    config: str | None = Field(None, description="Configuration of the hub dataset, if it has several.")
    splits: dict[Split, str] = Field({"train": "train", "val": "validation"}, description="Our split -> the split's name on the hub.")
    image: str = Field("image", description="Column of images.")
    label: str = Field("label", description="Column of masks.")
    classes: tuple[str, ...] | None = Field(
        None, strict=False, description="Class names in the order of ids; none: read from the features."
    )
    first: int = Field(0, ge=0, le=255, description="Mask value of the first class; the others follow.")
    ignore: tuple[int, ...] = Field((255,), strict=False, description="Mask values that belong to no class.")

    @model_validator(mode="after")
    def one_place(self) -> Self:
        if (self.files is None) == (self.hub is None):
            raise ValueError("give either files: {train: [...], val: [...]} or hub: org/name with its revision")
        if self.hub and not self.revision:
            raise ValueError("hub needs revision, the 40 hex digits of a commit: what a branch holds may change")
        if self.files is not None and not self.files:
            raise ValueError("files names no split")
        return self

    def outside(self) -> dict[str, str]:
        from stages.sources._layout import digest

        return {f"files.{split}": digest(Path(), [str(p) for p in expand(paths)]) for split, paths in (self.files or {}).items()}

    def class_count(self) -> int | None:
        return len(self.classes) if self.classes else None

    def write(self, out: Path, size: tuple[int, int] | None, limit: int | None, job: Any) -> tuple[dict, dict]:
        from stages.sources._classes import class_table, palette
        from stages.sources._rows import write_rows

        tables = self.open(job)
        names = self.classes or names_in(tables, self.label)
        raw = [[self.first + i] for i in range(len(names))]
        table = class_table(list(names), palette(len(names)), raw, self.ignore, source="the source's settings")
        facts = write_rows(tables, (self.image, self.label), table, out, size, limit, job)
        return {"source": "hf", **facts, "classes": list(names), "colours": [list(c) for c in table.colours]}, {}

    def open(self, job: Any) -> dict[str, Any]:
        """Split -> datasets.Dataset whose image and label columns give undecoded bytes."""
        try:
            import datasets
        except ImportError:
            raise Missing("source kind hf needs the package datasets: pip install datasets") from None
        datasets.disable_progress_bars()
        tables = {split: self.load(datasets, split, job) for split in self.files or self.splits}
        for split, table in tables.items():
            for column in (self.image, self.label):
                if column not in table.column_names:
                    raise BadData(f"split {split} has no column {column!r}: it has {', '.join(table.column_names)}; set image and label")
        return tables

    def load(self, datasets: Any, split: str, job: Any) -> Any:
        asked = f"{self.hub}@{self.revision}" if self.hub else ", ".join(map(str, self.files[split]))
        try:
            if self.hub:
                return datasets.load_dataset(
                    self.hub, self.config, revision=self.revision, split=self.splits[split], cache_dir=str(job.state)
                )
            paths = expand(self.files[split])
            missing = [p for p in paths if not p.is_file()]
            if missing or not paths:
                raise BadData(f"source.files.{split}: no such file {missing[0] if missing else asked}: correct the path")
            if all(p.suffix == ".parquet" for p in paths):
                return datasets.Dataset.from_parquet([str(p) for p in paths], cache_dir=str(job.state))
            if all(p.suffix == ".arrow" for p in paths):
                return datasets.concatenate_datasets([datasets.Dataset.from_file(str(p)) for p in paths])
            raise BadData(f"source.files.{split}: {asked}: give .parquet files or .arrow files, not both and nothing else")
        except BadData:
            raise
        except Exception as error:  # whatever the library meets in a foreign file or on the network
            reason = " ".join(str(error).split())[:300]
            raise BadData(f"split {split} of {asked} cannot be loaded: {type(error).__name__}: {reason}") from None


def expand(paths: list[str]) -> list[Path]:
    """Paths with * in the last component expanded, in order."""
    found = []
    for path in map(Path, paths):
        found += sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    return found


def names_in(tables: dict[str, Any], label: str) -> list[str]:
    """Class names kept in the features: of the label column, or of the only other column that has any for each of several things.

    One name for an image is what the whole of it shows, and not what its pixels are.
    """
    features = next(iter(tables.values())).features
    if label in features and (names := names_of(features[label])):
        return names
    named = {column: names for column, feature in features.items() if not hasattr(feature, "names") and (names := names_of(feature))}
    if len(named) == 1:
        return next(iter(named.values()))
    raise BadData("the data set does not say what its classes are called: set classes: [name, name, ...] in the order of ids")


def names_of(feature: Any) -> list[str] | None:
    while feature is not None and not hasattr(feature, "names"):
        feature = getattr(feature, "feature", None)
    return list(feature.names) if feature is not None and feature.names else None
