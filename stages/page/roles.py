"""Finds out who is who in a recipe: teacher, baseline without distillation, student, ONNX and engines."""

from dataclasses import dataclass, field
from typing import Any

ORDER = ("teacher", "baseline", "student", "model", "onnx", "engine")
TITLES = {
    "teacher": "Teacher",
    "baseline": "No-KD baseline",
    "student": "Student",
    "model": "Network",
    "onnx": "ONNX",
    "engine": "Engine",
}
BY_KIND = {"train": "model", "load": "model", "distill": "student", "export": "onnx", "quantize": "onnx", "optimize": "engine"}


@dataclass(frozen=True)
class Cast:
    """Role of every stage that makes a network, and the one stage that speaks for each role on the page."""

    role: dict[str, str] = field(default_factory=dict)  # stage name -> role, in the order of the page
    lead: dict[str, str] = field(default_factory=dict)  # role -> stage name

    def titles(self) -> dict[str, str]:
        """What a stage is called: its role, with the stage's name where several share a role and it says more."""
        shared = {role for role in ORDER if list(self.role.values()).count(role) > 1}
        return {name: f"{TITLES[role]} {name}" if role in shared and name != role else TITLES[role] for name, role in self.role.items()}


def cast(stages: list[dict], recipe: dict[str, Any]) -> Cast:
    """`stages` as the runner reports them; `recipe` is the resolved `stages` mapping."""
    kinds = {s["name"]: s["kind"] for s in stages}
    inputs = {s["name"]: s["inputs"] for s in stages}
    role = {name: BY_KIND[kind] for name, kind in kinds.items() if kind in BY_KIND}
    student = _student(kinds, inputs)
    lead = {}
    if student and kinds[student] == "distill":
        lead["student"] = student
        teacher = next(iter(inputs[student].get("teacher", [])), None)
        if teacher in role:
            role[teacher], lead["teacher"] = "teacher", teacher
        for name in _baselines(student, kinds, recipe):
            if name != teacher:
                role[name] = "baseline"
                lead.setdefault("baseline", name)
    elif student:
        lead["model"] = student
    for kind, field_ in (("onnx", "onnx"), ("engine", "engine")):
        lead |= _last(kind, role, kinds, inputs, field_)
    return Cast(dict(sorted(role.items(), key=lambda item: ORDER.index(item[1]))), lead)


def low(title: str) -> str:
    """A title inside a sentence: student, no-KD baseline, ONNX."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def _student(kinds: dict, inputs: dict) -> str | None:
    """The network that the measurement refers to, or the last one that was distilled, or the one that was exported."""
    networks = [n for n, k in kinds.items() if k in ("distill", "train", "load")]
    references = [r for n, k in kinds.items() if k == "validate" for r in inputs[n].get("reference", [])]
    distilled = [n for n in networks if kinds[n] == "distill"]
    exported = [c for n, k in kinds.items() if k == "export" for c in inputs[n].get("checkpoint", [])]
    chosen = [r for r in references if r in (distilled or networks)] or distilled[-1:] or [c for c in exported if c in networks]
    return chosen[-1] if chosen else None


def _baselines(student: str, kinds: dict, recipe: dict) -> list[str]:
    """Trained stages of the student's architecture."""
    model = _model(recipe, student)
    return [name for name, kind in kinds.items() if kind == "train" and model is not None and _model(recipe, name) == model]


def _model(recipe: dict, name: str) -> Any:
    stage = recipe.get(name)
    return stage.get("model") if isinstance(stage, dict) else None


def _last(wanted: str, role: dict, kinds: dict, inputs: dict, field_: str) -> dict[str, str]:
    """The one that is bundled, else the last of its role."""
    bundled = [n for s, k in kinds.items() if k == "bundle" for n in inputs[s].get(field_, [])]
    chosen = [n for n in bundled if role.get(n) == wanted] or [n for n, r in role.items() if r == wanted]
    return {wanted: chosen[-1]} if chosen else {}
