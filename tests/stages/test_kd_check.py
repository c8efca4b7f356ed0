"""What cannot be distilled as written is refused by `python -m pipeline check`, where it stands and with what to write instead."""

import sys
from pathlib import Path

import pytest

from pipeline.__main__ import main
from stages.kd import TABLE

RECIPE = """\
name: refused
stages:
  data: {kind: data, source: {kind: streets}, size: [64, 128]}
  words: {kind: embed, data: data, file: words.npy, rows: [road, sky]}
  teacher: {kind: train, data: data, model: {kind: deeplabv3}}
  bare: {kind: train, data: data, model: {kind: deeplabv3, aux: false}}
  headed: {kind: train, data: data, model: {kind: deeplabv3}, frozen: bare}
  student:
    kind: distill
    data: data
    model: {kind: tiny}
"""
LACKING = (
    "rdd needs aux of the teacher, and deeplabv3 as set here has none: "
    "train one onto it (a stage of kind train with frozen:), or set difficulty: entropy, or tfe: 0"
)
KINDS = "expected afdcd, at, cirkd, cwd, dist, fitnet, gskd, heteroakd, ifvd, kt, mgd, pixel, ... (14 in all)"
NEVER = "must not lie after end 1.0 - fall 0.2, for the weight would fall before it has risen: lower rise or fall, or let"

# What stands in the student, with | before what is refused; and what is said of it. Nothing is said of what may stand.
CASES = {
    "text without a matrix": (
        "teacher: teacher\nlosses: [{kind: cwd}, |{kind: text}]",
        "losses.1: text needs a vector of language per class: add a stage of kind embed above, and write text: and its name in this stage",
    ),
    "a matrix that nobody reads": (
        "teacher: teacher\ntext: |words\nlosses: [{kind: cwd}]",
        "text: no loss here uses vectors of language (those that do: text): add one, or leave text out",
    ),
    "a matrix that is none": (
        "teacher: teacher\ntext: |bare\nlosses: [{kind: text}]",
        'text: "bare" makes a Checkpoint, a TextMatrix is needed; words would do',
    ),
    "text with its matrix": ("teacher: teacher\ntext: words\nlosses: [{kind: text}]", None),
    "a first stage that no head of the teacher gives": ("teacher: bare\ntask: |{kind: rdd}", f"task: {LACKING}"),
    "the same by the paper": ("teacher: bare\ntask: |{kind: rdd, preset: paper}", f"task: {LACKING}"),
    "a first stage by the teacher's two heads": ("teacher: teacher\ntask: {kind: rdd, preset: paper}", None),
    "a first stage by a head that was trained onto the teacher": ("teacher: headed\ntask: {kind: rdd}", None),
    "a first stage by entropy": ("teacher: bare\ntask: {kind: rdd, difficulty: entropy}", None),
    "no first stage": ("teacher: bare\ntask: {kind: rdd, tfe: 0}", None),
    "kt without auxiliary heads": ("teacher: bare\nlosses: [{kind: kt}]", None),
    "kt with the teacher's": ("teacher: teacher\nlosses: [{kind: kt}]", None),
    "a preset that there is not": (
        "teacher: teacher\ntask: {kind: rdd, preset: |papper}",
        'task.preset: found "papper", expected code or paper; did you mean paper?',
    ),
    "a preset where there are none": (
        "teacher: teacher\nlosses: [{kind: kt, |preset: paper}]",
        "losses.0.preset: is no key here; keys are kind, when, channel, logit, feature,",
    ),
    "a weight that falls before it has risen": (
        "teacher: teacher\nlosses: [{kind: pixel, when: |{start: 0.5, rise: 0.4, fall: 0.2}}]",
        f"losses.0.when: start 0.5 + rise 0.4 {NEVER} start and end lie further apart",
    ),
    "a mixture that would end before it counts": (
        "teacher: teacher\nlosses: [|{kind: heteroakd, when: {end: 0.05}}]",
        "losses.0: when.start 0.0 + warm_up 0.05 + ramp 0.025 must lie before when.end 0.05: lower warm_up or ramp",
    ),
    "names that would end before they count": (
        "teacher: teacher\ntext: words\nlosses: [|{kind: text, when: {start: 0.98}}]",
        "losses.0: when.start 0.98 + warmup 0.025 + ramp 0.025 must end by when.end 1.0, and warmup before it: lower warmup or ramp",
    ),
    "nothing left of a method": (
        "teacher: teacher\nlosses: [|{kind: cirkd, weight: 0, pixel_weight: 0, region_weight: 0}]",
        "losses.0: weight, pixel_weight and region_weight are all 0, so that nothing is left of cirkd: raise one or remove it",
    ),
    "names that nobody is taught by": (
        "teacher: teacher\ntext: words\nlosses: [|{kind: text, channel_weight: 0, region_weight: 0}]",
        "losses.0: channel_weight and region_weight are both 0, so that nothing is learnt from the teacher: raise one or remove it",
    ),
    "weights for fewer classes than the data has": (
        "teacher: teacher\ntask: {kind: rdd, class_weights: |[1.0, 2.0]}",
        "task.class_weights: holds 2 numbers and the data 12 classes: give one for each",
    ),
    "descriptors that no image fills": (
        "teacher: teacher\nlosses: [{kind: gskd, group: |49}]",
        "losses.0.group: 49 needs 98 points of an image, and of 12 classes, 8 of each, there are 96 at most: lower group, or raise",
    ),
    "descriptors that an image may fill": ("teacher: teacher\nlosses: [{kind: gskd, group: 48}]", None),
    "two owners of the task loss": (
        "teacher: teacher\ntask: |[{kind: ce}, {kind: rdd}]",
        'task: found [{kind: "ce"}, {kind: "rdd"}], expected a mapping with a kind (ce or rdd); exactly one stands here, without brackets',
    ),
    "a second owner among the losses": (
        "teacher: teacher\nlosses: [{kind: |rdd}]",
        f'losses.0.kind: found "rdd", {KINDS}; rdd stands under task: write task: {{kind: rdd}}',
    ),
    "a loss as the owner": (
        "teacher: teacher\ntask: {kind: |pixel}",
        'task.kind: found "pixel", expected ce or rdd; pixel stands under losses: write losses: [{kind: pixel}]',
    ),
    "a misspelt kind": ("teacher: teacher\nlosses: [{kind: |pixle}]", f'losses.0.kind: found "pixle", {KINDS}; did you mean pixel?'),
}


@pytest.mark.parametrize("name", CASES)
def test_a_combination_is_refused_where_it_stands_and_with_the_fix(name, tmp_path, capsys, monkeypatch):
    written, said = CASES[name]
    text = RECIPE + "".join(f"    {line}\n" for line in written.splitlines())
    lines = text.partition("|")[0].splitlines()
    path = tmp_path / "refused.yaml"
    path.write_text(text.replace("|", ""))
    monkeypatch.setattr(sys, "argv", ["pipeline", "check", str(path)])
    code, (out, err) = main(), capsys.readouterr()
    if said is None:
        assert code == 0 and out.strip() == f"{path}: 6 stages, good" and not err
    else:
        assert code == 2
        assert err.strip().startswith(f"{path}:{len(lines)}:{len(lines[-1]) + 1}  stages.student.{said}") and len(err.splitlines()) == 1


def test_a_method_that_needs_a_teacher_is_refused_where_nobody_teaches(tmp_path, capsys, monkeypatch):
    path = tmp_path / "refused.yaml"
    path.write_text(RECIPE.replace("{kind: deeplabv3}}", "{kind: deeplabv3}, task: {kind: rdd}}").partition("  student")[0])
    monkeypatch.setattr(sys, "argv", ["pipeline", "check", str(path)])
    said = "stages.teacher.task: rdd learns from a teacher: use it in a stage of kind distill, or write {kind: ce} here"
    assert main() == 2 and capsys.readouterr().err == f"{path}:5:70  {said}\n"


def test_every_method_has_a_test_of_its_values_in_the_file_that_the_documentation_names():
    beside = {"afdcd": "mgd", "ce": "pixel"}
    for name in TABLE.names():
        text = Path(__file__).with_name(f"test_kd_{beside.get(name, name)}.py").read_text(encoding="utf-8")
        assert name in text and ("float64" in text or "double()" in text), name
