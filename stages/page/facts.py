"""Collects what the page says from a run and its artifacts, as clean JSON. Nothing here fails because a part is missing or odd."""

from typing import Any

from pipeline.artifact import Artifact

from . import measured as of_measurement
from . import pairs, roles, verdict
from .words import clean, name, number, plain, settings

FIGURES = ("p50", "p90", "p99", "mean", "n", "p50_low", "p50_high", "p90_most", "p99_most")  # of times
POINTS = 200  # a curve on the page; longer ones are averaged in buckets


def collect(run: dict, artifacts: dict[str, Artifact]) -> dict:
    """Every figure and text of the page, without the pictures. Keys are stable; a part that is not there is empty or None."""
    notes: list[str] = []
    stages = _stages(run, artifacts)
    recipe = _mapping(_mapping(run.get("resolved")).get("stages"))
    cast = roles.cast(stages, recipe)
    measured, measurement = _measurement(stages, artifacts, notes)
    table = _table(cast, measurement, artifacts, notes)
    about = _about(measured, measurement, artifacts)
    classes = _classes(measurement, artifacts)
    rules = verdict.rules(artifacts, notes)
    notes += _absent(stages)
    return {
        "schema": 1,
        "run": _run(run),
        "verdict": verdict.verdict(run, stages, rules, table, cast),
        "headline": verdict.headline(table, cast, about),
        "measured": about,
        "waterfall": of_measurement.waterfall(measurement),
        "pairs": pairs.collect(measured, notes),
        "lead": {role: name(stage) for role, stage in cast.lead.items()},
        "table": table,
        "classes": classes,
        "curves": _curves(cast, artifacts, notes),
        "pictures": [],
        "changes": [],
        "rules": rules,
        "stages": [_shown(stage) for stage in stages],
        "data": _data(artifacts),
        "machine": plain(_mapping(run.get("machine"))),
        "versions": plain(_mapping(run.get("versions"))),
        "recipe": plain(_mapping(run.get("resolved"))),
        "notes": list(dict.fromkeys(notes)),
    }


def measurement_of(stages: list[dict], artifacts: dict[str, Artifact]) -> Artifact | None:
    """The measurement that the gate judged, or the last one there is."""
    made = {key: a for key, a in artifacts.items() if a.kind == "Measurement"}
    judged = [m for s in stages if s["kind"] in ("gate", "bundle") for m in s["inputs"].get("measured", []) if m in made]
    chosen = judged[-1:] or list(made)[-1:]
    return made[chosen[0]] if chosen else None


def read(artifact: Artifact, file: str, notes: list[str]) -> dict:
    """A JSON file of an artifact, or {} with a note."""
    try:
        return _mapping(artifact.json(file))
    except (OSError, ValueError, RecursionError):
        notes.append(f"{file} of {name(artifact.name)} could not be read.")
        return {}


def _run(run: dict) -> dict:
    return {
        "run": name(run.get("run", "")),
        "recipe": name(run.get("recipe", "")),
        "profile": None if run.get("profile") is None else name(run["profile"]),
        "rehearsal": run.get("rehearsal") is True,
        "started": name(run.get("started", "")),
        "seconds": number(run.get("seconds")),
        "exit": number(run.get("exit")),
    }


def _stages(run: dict, artifacts: dict[str, Artifact]) -> list[dict]:
    """The stages with raw names (they are keys of `artifacts` and of the recipe), every field present."""
    told = [s for s in run.get("stages") or [] if isinstance(s, dict) and s.get("name")]
    found = [
        {
            "name": str(s["name"]),
            "kind": str(s.get("kind", "")),
            "makes": artifacts[s["name"]].kind if s["name"] in artifacts else None,
            "id": s.get("id") or (artifacts[s["name"]].id if s["name"] in artifacts else None),
            "kept": s.get("kept") is True,
            "seconds": number(s.get("seconds")),
            "state": str(s.get("state", "missing")),
            "error": s.get("error") or (run.get("error") if s.get("state") in ("failed", "stopped") else None),
            "inputs": {str(k): [str(n) for n in v] for k, v in _mapping(s.get("inputs")).items() if isinstance(v, list | tuple)},
        }
        for s in told
    ]
    return _in_order(found)


def _in_order(stages: list[dict]) -> list[dict]:
    """The same stages, each after those it takes; otherwise in the order given."""
    ordered: list[dict] = []
    left = list(stages)
    while left:
        waiting = {s["name"] for s in left}
        ready = next((s for s in left if not waiting & {n for names in s["inputs"].values() for n in names} - {s["name"]}), left[0])
        left.remove(ready)
        ordered.append(ready)
    return ordered


def _shown(stage: dict) -> dict:
    """A stage with its texts made safe to read."""
    texts = {key: name(stage[key]) for key in ("name", "kind", "state")} | {"makes": name(stage["makes"]) if stage["makes"] else None}
    error = None if stage["error"] is None else "\n".join(clean(line) for line in str(stage["error"])[:4000].splitlines()[:24])
    identity = None if stage["id"] is None else name(stage["id"])
    return stage | texts | {"id": identity, "error": error, "inputs": {name(k): [name(n) for n in v] for k, v in stage["inputs"].items()}}


def _absent(stages: list[dict]) -> list[str]:
    """One sentence for every stage that gave nothing."""
    word = {"failed": "failed", "stopped": "was stopped", "missing": "was not reached"}
    odd = [s for s in stages if s["state"] != "done"]
    return [f"The stage {name(s['name'])} ({name(s['kind'])}) {word.get(s['state'], 'is not done')}." for s in odd]


def _measurement(stages: list[dict], artifacts: dict[str, Artifact], notes: list[str]) -> tuple[Artifact | None, dict]:
    chosen = measurement_of(stages, artifacts)
    others = [name(a.name) for a in artifacts.values() if a.kind == "Measurement" and a is not chosen]
    if others:
        notes.append(f"The figures are those of {name(chosen.name)}; not shown here: {', '.join(others)}.")
    return chosen, read(chosen, "measurement.json", notes) if chosen else {}


def _about(artifact: Artifact | None, measurement: dict, artifacts: dict[str, Artifact]) -> dict | None:
    if not measurement:
        return None
    size = next((a.facts.get("size") for a in artifacts.values() if a.kind == "Dataset"), None)
    return {
        "stage": name(artifact.name),
        "split": name(measurement.get("split", "")),
        "images": number(measurement.get("images")),
        "size": _pair(size),
        "reference": name(measurement.get("reference", "")),
        "machine": plain(_mapping(measurement.get("machine"))),
        "target": of_measurement.target(measurement),
        "conditions": of_measurement.conditions(measurement),
    }


def _table(cast: roles.Cast, measurement: dict, artifacts: dict[str, Artifact], notes: list[str]) -> list[dict]:
    """One row per network: as measured, or, before a measurement, with what training itself found."""
    models = _mapping(measurement.get("models"))
    known = [n for n in cast.role if n in models or n in artifacts] + [n for n in models if n not in cast.role]
    titles = cast.titles()
    rows = [_row(n, cast.role.get(n), titles.get(n), _mapping(models.get(n)), artifacts.get(n)) for n in known]
    for who in ("teacher", "student"):
        against = next((r["miou"] for r in rows if r["stage"] == name(cast.lead.get(who, "")) and r["measured"]), None)
        for row in rows:
            row[f"to_{who}"] = None if None in (row["miou"], against) or not row["measured"] else round(row["miou"] - against, 6)
    unmeasured = [r["stage"] for r in rows if not r["measured"]]
    if models and unmeasured:
        notes.append(f"Not among the measured: {', '.join(unmeasured)}.")
    return rows


def _row(stage: str, role: str | None, title: str | None, model: dict, artifact: Artifact | None) -> dict:
    facts = artifact.facts if artifact else {}
    val = {} if model else _mapping(facts.get("val"))
    latency = _mapping(model.get("latency"))
    iou = (model or val).get("iou")
    return {
        "stage": name(stage),
        "role": role or "model",
        "title": name(title or stage),
        "what": settings(facts.get("engine") or facts.get("model")),
        "ran": {name(k): name(v) for k, v in _mapping(model.get("ran")).items() if isinstance(v, str | int | float)},
        "measured": bool(model),
        "reference": model.get("role") == "reference",
        "miou": number((model or val).get("miou")),
        "iou": [number(v) for v in iou] if isinstance(iou, list) else [],
        "agreement": number(model.get("agreement")),
        "parameters": number(model.get("parameters")),
        "size_mb": number(model.get("size_mb")),
        "image_ms": _latency(latency.get("image_ms")),
        "engine_ms": _latency(latency.get("engine_ms")),
        "image_cpu_ms": _latency(latency.get("image_cpu_ms")),
        "engine_cpu_ms": _latency(latency.get("engine_cpu_ms")),
        "kept": of_measurement.kept(model),
        "threads": number(latency.get("threads")),
    }


def _latency(found: Any) -> dict | None:
    found = {k: number(v) for k, v in _mapping(found).items() if k in FIGURES}
    found = {k: None if v is not None and v < 0 else v for k, v in found.items()}
    return found if found.get("p50") is not None else None


def _classes(measurement: dict, artifacts: dict[str, Artifact]) -> list[dict]:
    """Name, colour and share of the labelled pixels, per class."""
    data = next((a.facts for a in artifacts.values() if a.kind == "Dataset"), {})
    source = measurement if measurement.get("classes") else data
    names, colours = _list(source.get("classes")), _list(source.get("colours"))
    split = measurement.get("split") or "train"
    pixels = [number(v) or 0 for v in _list(_mapping(data.get("label_pixels")).get(split))]
    total = sum(pixels) if len(pixels) == len(names) else 0
    return [
        {
            "name": name(n),
            "colour": colour(colours[i] if i < len(colours) else None),
            "share": round(pixels[i] / total, 6) if total else None,
        }
        for i, n in enumerate(names[:256])
    ]


def colour(value: Any) -> list[int]:
    """Three bytes; grey for anything else."""
    good = isinstance(value, list | tuple) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)
    return list(value) if good else [128, 128, 128]


def _curves(cast: roles.Cast, artifacts: dict[str, Artifact], notes: list[str]) -> list[dict]:
    curves = []
    titles = cast.titles()
    for stage, role in cast.role.items():
        artifact = artifacts.get(stage)
        if not artifact or artifact.kind != "Checkpoint" or not artifact.file("curves.json").is_file():
            continue  # a loaded teacher was not trained here
        found = read(artifact, "curves.json", notes)
        train, val = _thin(_train(found.get("train"))), _val(found.get("val"))
        if train or val:
            told = {"stage": name(stage), "role": role, "title": name(titles[stage]), "train": train, "val": val}
            curves.append(told | {"setbacks": _setbacks(found.get("events"))})
    return curves


def _train(found: Any) -> list[dict]:
    """One flat dict per step: step, loss, and the named terms and ratios."""
    good = [p for p in _list(found) if isinstance(p, dict) and number(p.get("step")) is not None]
    return [
        {"step": p["step"], "loss": number(p.get("loss"))}
        | {key: {name(k): number(v) for k, v in _mapping(p.get(key)).items()} for key in ("terms", "ratios")}
        for p in good
    ]


def _val(found: Any) -> list[dict]:
    good = [p for p in _list(found) if isinstance(p, dict) and number(p.get("step")) is not None and number(p.get("miou")) is not None]
    stride = -(-len(good) // POINTS) or 1
    kept = good[::-stride][::-1]  # counted from the end, so that the last one stays
    return [{"step": p["step"], "miou": p["miou"]} for p in kept]


def _setbacks(found: Any) -> dict:
    """How many steps left the weights alone, and when training went back, for numbers that are not finite."""
    events = [e for e in _list(found) if isinstance(e, dict) and number(e.get("step")) is not None]
    back = [e for e in events if e.get("event") == "went back" and number(e.get("to")) is not None]
    return {
        "skipped": sum(e.get("event") == "skipped" for e in events),
        "back": [{"step": e["step"], "to": e["to"], "lr_factor": number(e.get("lr_factor"))} for e in back[:4]],
    }


def _thin(train: list[dict]) -> list[dict]:
    """At most POINTS points, each the mean of its bucket at the bucket's last step."""
    stride = -(-len(train) // POINTS) or 1
    return [_mean(train[i : i + stride]) for i in range(0, len(train), stride)]


def _mean(bucket: list[dict]) -> dict:
    if len(bucket) == 1:
        return bucket[0]
    means = {key: {k: _average([p[key].get(k) for p in bucket]) for k in bucket[-1][key]} for key in ("terms", "ratios")}
    return {"step": bucket[-1]["step"], "loss": _average([p["loss"] for p in bucket])} | means


def _average(values: list[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return round(sum(there) / len(there), 6) if there else None


def _data(artifacts: dict[str, Artifact]) -> list[dict]:
    return [
        {
            "stage": name(a.name),
            "source": name(a.facts.get("source", "")),
            "size": _pair(a.facts.get("size")),
            "classes": len(_list(a.facts.get("classes"))),
            "splits": {name(k): number(v) for k, v in _mapping(a.facts.get("splits")).items()},
        }
        for a in artifacts.values()
        if a.kind == "Dataset"
    ]


def _pair(size: Any) -> list[int] | None:
    good = isinstance(size, list | tuple) and len(size) == 2 and all(number(v) is not None for v in size)
    return list(size) if good else None


def _mapping(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []
