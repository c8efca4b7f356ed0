"""What a verdict rests on: the figures of a measurement, counts per image, raw times, and the same of the committed baseline.

All of it is stored, so that a verdict can be recomputed from it on any machine, without a model and without images.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.measure.quiet import reasons_of
from stages.rules import CPU_TIMES, MISMATCHES, RELEASED, TIMES, Rule

if TYPE_CHECKING:
    import numpy as np

    from stages.baseline import Baseline


class Unknown(Exception):
    """A comparison that cannot be made, and what to do about it: its rule is undecided."""


class Busy(Unknown):
    """Others kept the machine busy while times were measured: measuring again may tell."""


class Evidence:
    """`folder` holds the files beside measurement.json; `released` is pipeline.released.Released, or None where no rule speaks of it."""

    def __init__(self, measurement: dict[str, Any], folder: Path | None = None, released: Any = None):
        self.measurement, self.folder, self.released = measurement, folder, released
        self._names: list[str] | None = None
        self._counted: dict[tuple[str, str | None], Any] = {}  # by pair: a gate may have a rule for every class
        self._resampled: dict[tuple[str, str | None], Any] = {}

    def noise(self, model: str) -> str | None:
        """Why its times by the clock say nothing; None where they do. What it may be compared with was timed on the same machine."""
        return "; ".join(reasons_of(self.measurement.get("conditions"), model)) or None

    def figure(self, rule: Rule) -> float | None:
        """Of the model judged; None where it was not measured."""
        return figure(self.measurement, rule.of, rule.metric)

    def other_figure(self, rule: Rule) -> float | None:
        """Of the model that it is compared with; None where there is none, or it was not measured."""
        if rule.against != RELEASED:
            return figure(self.measurement, rule.against, rule.metric) if rule.against else None
        kept = self.baseline()
        if rule.of not in kept.models:
            raise Unknown(f"{self.released.file} holds {', '.join(kept.models)} and no {rule.of}. {self.released.accept}")
        if rule.metric != "size_mb" and (differing := differences(self.measurement.get("fingerprint"), kept.fingerprint.model_dump())):
            raise Unknown(f"the baseline was measured on other images; what differs: {differing}. {self.released.accept}")
        return figure(kept.as_measurement(), rule.of, rule.metric)

    def samples(self, rule: Rule) -> list[float]:
        """Every timed run behind a time."""
        latency = self.measurement["models"][rule.of].get("latency") or {}
        return latency.get(f"samples_{(TIMES | CPU_TIMES)[rule.metric][0]}", [])

    def on_gpu(self, rule: Rule) -> bool:
        """Whether either of the two models that a rule on times compares ran there."""
        return any((self.measurement["models"][name].get("latency") or {}).get("on_gpu") for name in (rule.of, rule.against))

    def pair(self, rule: Rule) -> dict[str, Any] | None:
        """The entry of pairs.json that the rule is judged by; None where the two were not timed in turns."""
        file = self.folder / "pairs.json" if self.folder and rule.is_of_pair else None
        found = json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else []
        return next((one for one in found if (one["candidate"], one["baseline"]) == (rule.of, rule.against)), None)

    def require_same_baseline(self, rule: Rule, pair: dict[str, Any]) -> None:
        """A pair with `released` was timed against one ONNX file, built with some settings: the baseline must still be that."""
        if rule.against != RELEASED:
            return
        model = self.baseline().models.get(rule.of)
        if model is None or model.onnx is None or model.onnx.id != pair["source"]:
            text = f"{rule.of} was timed against ONNX file {pair['source'][:12]}, which is not that of {self.released.file}"
            raise Unknown(f"{text}: run the recipe with that file as its committed baseline")
        if model.engine != pair.get("engine", model.engine):
            text = f"{rule.of} was timed against an engine of other settings than that of {self.released.file}"
            raise Unknown(f"{text}: run the recipe with that file as its committed baseline")

    def class_number(self, rule: Rule) -> int:
        return self.measurement["classes"].index(rule.metric.removeprefix("iou."))

    def mismatches(self, rule: Rule) -> "np.ndarray | None":
        """int64 (N, 2) labelled pixels and those that the rule counts; None where a measurement was stored without."""
        found, column = read(self.folder, f"mismatch_{rule.of}"), 1 + MISMATCHES.index(rule.metric)
        return None if found is None or column >= found.shape[1] else found[:, [0, column]]

    def unmeasured(self, rule: Rule) -> str:
        """Why a figure is not there, where that is known."""
        return (self.measurement.get("mismatch") or {}).get("why") or "" if rule.metric == "clear_mismatch" else ""

    def name(self, image: int) -> str:
        """Of an image, by its number in the split."""
        if self._names is None:
            file = self.folder / "names.json" if self.folder else None
            self._names = json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else []
        return self._names[image] if image < len(self._names) else f"image {image}"

    def resampled(self, rule: Rule) -> Any:
        """measure.bootstrap.Intervals of every class: IoU, or with `against` (2 C,) differences and ratios."""
        import numpy as np

        from stages.measure.bootstrap import bootstrap

        def compared(iou: np.ndarray) -> np.ndarray:
            of, other = iou[..., 0, :], iou[..., -1, :]
            return np.concatenate([of - other, of / np.where(other > 0, other, np.nan)], axis=-1)

        pair = (rule.of, rule.against)
        if pair not in self._resampled:
            counted = self.counted(rule)
            self._resampled[pair] = bootstrap(counted[:2], compared) if rule.against else bootstrap(counted[:1], lambda iou: iou[..., 0, :])
        return self._resampled[pair]

    def counted(self, rule: Rule) -> Any:
        """measure.sure.Counted of the rule's models; None where a measurement was stored without counts."""
        if (pair := (rule.of, rule.against)) not in self._counted:
            self._counted[pair] = self._read(rule)
        return self._counted[pair]

    def _read(self, rule: Rule) -> Any:
        from stages.measure.sure import Counted

        of = read(self.folder, f"counts_{rule.of}")
        if rule.against == RELEASED:
            against = self.released_counts(rule.of)
        else:
            against = read(self.folder, f"counts_{rule.against}") if rule.against else None
        if of is None or (rule.against and against is None):
            return None
        return Counted(of, against, self._touched(rule))

    def _touched(self, rule: Rule) -> "np.ndarray | None":
        """Pixels on which the two differ; counted against the reference, for which of the two it is."""
        pair = [rule.of, rule.against]
        if self.measurement.get("reference") not in pair:
            return None
        other = pair[1 - pair.index(self.measurement["reference"])]
        found = None if other is None else read(self.folder, f"touched_{other}")
        return None if found is None else found.sum(axis=0)

    # -- the committed baseline

    def baseline(self) -> "Baseline":
        """Raises Unknown where there is none."""
        from stages.baseline import Baseline

        if self.released is None or self.released.content is None:
            raise Unknown(self.released.problem if self.released else "no baseline was given")
        return Baseline.read(self.released.content)

    def released_counts(self, name: str) -> "np.ndarray":
        kept = self.baseline()
        if name not in kept.models:
            raise Unknown(f"{self.released.file} holds {', '.join(kept.models)} and no {name}. {self.released.accept}")
        artifact = self.released.artifacts.get(kept.measured)
        if artifact is None:
            raise Unknown(self.released.missing(kept.measured, "its counts per image"))
        counts = read(artifact.folder, f"counts_{name}")
        if counts is None or digest(counts) != kept.models[name].counts_sha256:
            raise Unknown(
                f"artifact {kept.measured[:12]} does not hold the counts of {name} that the baseline names. {self.released.accept}"
            )
        if not kept.agrees(name, counts):
            raise Unknown(f"the IoU of {name} in {self.released.file} is not that of its counts: take the file from version control again")
        return counts


def differences(one: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    """What differs between the fingerprints of two measurements, in words; "" where nothing does."""
    from stages.measure.fingerprint import differing

    return "one of the two has no fingerprint" if None in (one, other) else "; ".join(differing(one, other))


def figure(measurement: dict[str, Any], name: str, metric: str) -> float | None:
    """A figure of a measurement, None where it was not measured."""
    model = measurement["models"].get(name)
    if model is None:
        return None
    if metric.startswith("iou."):
        table = dict(zip(measurement["classes"], model["iou"], strict=True))
        value = table.get(metric.removeprefix("iou."))
    elif metric in (*TIMES, *CPU_TIMES):
        boundary, percentile = (TIMES | CPU_TIMES)[metric]
        value = (model.get("latency") or {}).get(boundary, {}).get(percentile)
    else:
        value = model.get(metric)
    return None if value is None or not math.isfinite(value) else float(value)


def of_artifact(measured: Any, released: Any) -> Evidence:
    return Evidence(json.loads(measured.file("measurement.json").read_text(encoding="utf-8")), measured.folder, released)


def read(folder: Path | None, name: str) -> "np.ndarray | None":
    import numpy as np

    file = folder / f"{name}.npy" if folder else None
    return np.load(file, allow_pickle=False) if file and file.is_file() else None


def digest(counts: "np.ndarray") -> str:
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(counts, np.int64).tobytes()).hexdigest()
