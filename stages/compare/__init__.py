"""What the artifacts of two runs say of each other: data, accuracy, classes, time, size, hops, verdicts. For `diff`, and its page."""

from typing import Any

from pipeline.artifact import Artifact
from pipeline.comparing import Section, Story, Told


def compare(story: Story, one: dict[str, Artifact], two: dict[str, Artifact]) -> Told:
    """Writes nothing. What one of the runs lacks is named in story.notes, once, in plain words."""
    from stages.page.comparison import html  # pillow and numpy are loaded only once somebody compares

    from . import data, effects, measured

    runs = [about["run"] for about in story.runs]
    sides = [measured.of(run, found, settings, story) for run, found, settings in zip(runs, (one, two), story.inputs, strict=True)]
    facts: dict[str, Any] = {"schema": 1} | {key: getattr(story, key) for key in ("runs", "recipe", "code", "stages", "same", "figures")}
    facts["data"] = data.changes(one, two, story.notes) if _both("Dataset", one, two) else None
    found, sections, uris = _measured(sides, story.notes) if None not in sides else (NOTHING, [], [])
    facts |= found | {"verdicts": effects.verdicts(one, two, story.notes), "notes": list(dict.fromkeys(story.notes))}
    causes = [] if facts["data"] is None else [Section("data", facts["data"])]
    if _both("Verdict", one, two):
        sections.append(Section("verdict", effects.verdict_lines(facts["verdicts"])))
    return Told(causes, sections, html(facts, uris), facts)


NOTHING: dict[str, Any] = {"accuracy": None, "times": None, "sizes": [], "hops": [], "scenes": []}


def _measured(sides: list, notes: list[str]) -> tuple[dict[str, Any], list[Section], list[list[str]]]:
    """What two measurements say: facts, sections (an empty one: nothing changed), and the tiles of the scenes."""
    from . import accuracy, effects, pictures, times

    one, two = sides
    titles = ("accuracy", "classes", "time", "size", "hops")
    if one.artifact.id == two.artifact.id:
        return NOTHING, [Section(title, []) for title in titles], []
    found = {"accuracy": accuracy.compared(one, two, notes), "times": times.compared(one, two)}
    found |= {"sizes": effects.sizes(one, two), "hops": effects.hops(one, two)}
    found["scenes"], uris = pictures.collect(one, two, accuracy.decides(one, two), notes)
    told = [accuracy.lines(found["accuracy"]), accuracy.class_lines(found["accuracy"]), times.lines(found["times"])]
    told += [[line["text"] for line in found[key]] for key in ("sizes", "hops")]
    known = {"accuracy": found["accuracy"], "classes": found["accuracy"], "time": found["times"], "size": found["accuracy"]}
    sections = [Section(title, lines) for title, lines in zip(titles, told, strict=True) if lines or known.get(title, True)]
    return found, sections, uris


def _both(kind: str, one: dict[str, Artifact], two: dict[str, Artifact]) -> bool:
    return all(any(artifact.kind == kind for artifact in side.values()) for side in (one, two))
