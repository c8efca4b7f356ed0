"""What the artifacts of two runs say of each other: data, accuracy, classes, time, size, hops, verdicts. For `diff`, and its page."""

from pipeline.artifact import Artifact
from pipeline.comparing import Section, Story, Told


def compare(story: Story, one: dict[str, Artifact], two: dict[str, Artifact]) -> Told:
    """Writes nothing. What one of the runs lacks is named in story.notes, once, in plain words."""
    from stages.page.comparison import html  # pillow and numpy are loaded only once somebody compares

    from . import accuracy, data, effects, measured, pictures, times

    runs = [about["run"] for about in story.runs]
    sides = [measured.of(run, found, settings, story) for run, found, settings in zip(runs, (one, two), story.inputs, strict=True)]
    both = None if None in sides or sides[0].artifact.id == sides[1].artifact.id else sides
    facts = {"schema": 1, "runs": story.runs, "recipe": story.recipe, "code": story.code, "stages": story.stages, "same": story.same}
    facts |= {"data": data.changes(one, two, story.notes), "accuracy": None, "times": None, "sizes": [], "hops": [], "scenes": []}
    uris: list[list[str]] = []
    if both:
        facts |= {"accuracy": accuracy.compared(*both, story.notes), "times": times.compared(*both), "sizes": effects.sizes(*both)}
        facts |= {"hops": effects.hops(*both)}
        facts["scenes"], uris = pictures.collect(*both, facts["accuracy"], story.notes)
    facts |= {"verdicts": effects.verdicts(one, two, story.notes), "figures": story.figures, "notes": list(dict.fromkeys(story.notes))}
    told = [
        Section("accuracy", accuracy.lines(facts["accuracy"])),
        Section("classes", accuracy.class_lines(facts["accuracy"])),
        Section("time", times.lines(facts["times"])),
        Section("size", [line["text"] for line in facts["sizes"]]),
        Section("hops", [hop["text"] for hop in facts["hops"]]),
        Section("verdict", effects.verdict_lines(facts["verdicts"])),
    ]
    return Told([Section("data", facts["data"])], told, html(facts, uris), facts)
