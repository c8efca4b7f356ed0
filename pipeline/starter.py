"""Writes the first recipe of a newcomer: complete, runnable, and explained line by line."""

import argparse
import json
import re
import shlex
import sys
from typing import Any

from .errors import BadRecipe
from .problems import Problem, listed, meant, shown, together
from .show import plain

SEGFORMERS = ("b0", "b1", "b2", "b3", "b4", "b5")

QUESTIONS: list[tuple[str, str, str, tuple[str, ...] | None]] = [  # key, question, default, choices
    ("name", "Name of the recipe", "my_recipe", None),
    ("data", "Data to train on; streets draws its own scenes", "streets", ("streets", "folder", "camvid", "cityscapes")),
    ("root", "Folder that holds the data; empty for streets", "", None),
    ("classes", "Class table inside that folder; only data: folder needs one", "classes.yaml", None),
    ("size", "Height x width that images are brought to, multiples of 32", "256x512", None),
    ("teacher", "Teacher: train, or a .safetensors file, or a folder written by save_pretrained", "train", None),
    ("teacher_model", "Network of the teacher: a SegFormer size, tiny, or hf for other given teachers", "b2", (*SEGFORMERS, "tiny", "hf")),
    ("student_model", "Network of the student: a SegFormer size, or tiny", "b0", (*SEGFORMERS, "tiny")),
    ("engine", "Runtime on the device", "onnxruntime", ("onnxruntime", "openvino")),
]

CODE = 48  # column where comments begin, unless the code is longer
TRAINED = ("teacher", "baseline", "student")


def init(asked: argparse.Namespace, parts: Any) -> None:
    """Writes a commented starter recipe from a few questions, or from --answer key=value."""
    if asked.recipe.exists():
        raise BadRecipe(f"{asked.recipe} exists already: choose another name")
    given = dict(pair.partition("=")[::2] for pair in asked.answer)
    if unknown := given.keys() - {key for key, *_ in QUESTIONS}:
        raise BadRecipe(f"no question is called {', '.join(sorted(unknown))}; there are: {', '.join(key for key, *_ in QUESTIONS)}")
    answers = {"name": asked.recipe.stem}
    for key, question, default, choices in QUESTIONS:
        answers[key] = given[key] if key in given else _ask(key, question, answers | {key: answers.get(key, default)}, choices)
    text = starter(" ".join(plain(shlex.quote(str(asked.recipe))).split()), **answers)
    asked.recipe.parent.mkdir(parents=True, exist_ok=True)
    asked.recipe.write_text(text, encoding="utf-8")
    print(f"wrote {asked.recipe}\nnext:  python -m pipeline check {asked.recipe}\nthen:  python -m pipeline run {asked.recipe}")


def starter(file: str = "RECIPE", **answers: Any) -> str:
    """The text of a recipe; `answers` are keyed as in QUESTIONS, and what is not answered takes its default."""
    a = _checked(answers)
    return "\n".join(_line(code, comment) for code, comment in _lines(a, file)) + "\n"


def _lines(a: dict[str, Any], file: str) -> list[tuple[str, str]]:
    """(code, comment) pairs."""
    return [
        ("", f"check it: python -m pipeline check {file}; run it: python -m pipeline run {file}"),
        (f"name: {_text(a['name'])}", "runs are filed under this name"),
        ("stages:", "from top to bottom; a stage names stages above it"),
        *_data(a),
        *_teacher(a),
        ("  baseline:", "the student's network without a teacher, to see what distilling is worth"),
        *_trained("train", a["student_model"], "small", a),
        ("  student:", "the small network, taught by the large one"),
        *_trained("distill", a["student_model"], "small", a),
        *_engine(a),
        *_measured(a),
        *_profile(a),
    ]


def _data(a: dict[str, Any]) -> list[tuple[str, str]]:
    settings = {
        "streets": [
            ("      kind: streets", "street scenes drawn on the spot: no download"),
            ("      seed: 0", "another seed draws another world"),
        ],
        "folder": [
            ("      kind: folder", "your own images and masks"),
            (f"      root: {_text(a['root'])}", "the folder with everything in it; what follows is relative to it"),
            ('      images: "{split}/images/{stem}.jpg"', "where images lie: {split} and {stem} are filled in"),
            ('      labels: "{split}/labels/{stem}.png"', "where the mask of an image lies, with the same {stem}"),
            (f"      classes: {_text(a['classes'])}", "names, colours and mask values of the classes"),
            ("      splits: [train, val]", "what {split} stands for"),
        ],
        "camvid": [
            ("      kind: camvid", "CamVid, 11 classes"),
            (f"      root: {_text(a['root'])}", "the folder with train.txt and classes.json"),
        ],
        "cityscapes": [
            ("      kind: cityscapes", "Cityscapes, 19 classes"),
            (f"      root: {_text(a['root'])}", "the folder with leftImg8bit and gtFine"),
        ],
    }[a["data"]]
    return [
        ("  data:", "the images and labels, all of them looked at before anything is trained"),
        ("    kind: data", "what this stage does"),
        ("    source:", "where pictures and labels come from"),
        *settings,
        (f"    size: {list(a['size'])}", "height and width in pixels that everything is brought to once"),
    ]


def _teacher(a: dict[str, Any]) -> list[tuple[str, str]]:
    if a["teacher"] == "train":
        return [("  teacher:", "the large network, trained here"), *_trained("train", a["teacher_model"], "large", a)]
    return [
        ("  teacher:", "the large network, trained elsewhere, and measured on the data at once"),
        ("    kind: load", "takes given weights"),
        ("    data: data", "what it is measured on; its classes must be those it was trained for"),
        (f"    model: {_model(a['teacher_model'], 'large')}", "the architecture the weights belong to"),
        (f"    weights: {{file: {_text(a['teacher'])}}}", "a .safetensors file or a folder written by save_pretrained"),
    ]


def _trained(kind: str, model: str, tiny: str, a: dict[str, Any]) -> list[tuple[str, str]]:
    distilled = [
        ("    teacher: teacher", "the stage that teaches"),
        ("    task: {kind: ce}", "the loss on the labels: cross-entropy"),
        ("    losses:", "what is learnt from the teacher; [] learns nothing from it"),
        ("      - {kind: pixel, weight: 1.0, temperature: 1.0, at: labels}", "its class probabilities at every pixel"),
    ]
    if model != "tiny":
        distilled.append(("      - {kind: cwd, weight: 0.3, temperature: 4.0}", "where in the image it looks for each class"))
    return [
        (f"    kind: {kind}", "learns from labels alone" if kind == "train" else "learns from labels and from a teacher"),
        ("    data: data", "the stage whose data is used"),
        (f"    model: {_model(model, tiny)}", "the architecture"),
        *(distilled if kind == "distill" else []),
        *_fit(model, tiny, a["size"]),
    ]


def _fit(model: str, tiny: str, size: tuple[int, int]) -> list[tuple[str, str]]:
    small = model == "tiny"
    rate = {"small": "4.0e-3", "large": "2.0e-3"}[tiny] if small else "6.0e-5"
    head = [] if small else [("      head_lr: 10.0", "the head, which starts from nothing, learns this many times faster")]
    return [
        ("    fit:", "how it is trained"),
        (f"      steps: {4000 if small else 40000}", "optimiser steps"),
        ("      batch: 8", "images per step"),
        (f"      crop: {[min(side, 512) for side in size]}", "height and width of the part of an image that a step sees"),
        (f"      lr: {rate}", "highest learning rate"),
        *head,
        (f"      warmup: {100 if small else 1500}", "steps over which the learning rate rises"),
        ("      precision: bf16", "arithmetic on the GPU; fp32 is slower and exact"),
        ("      seed: 1", "another seed gives another training"),
    ]


def _engine(a: dict[str, Any]) -> list[tuple[str, str]]:
    runtime, comment = {
        "onnxruntime": ("{kind: onnxruntime, provider: cpu}", "write provider: cuda for an NVIDIA GPU"),
        "openvino": ("{kind: openvino, precision: f32}", "for Intel CPUs; bf16 is faster where the CPU has it"),
    }[a["engine"]]
    return [
        ("  onnx:", "the student as one ONNX file, checked against PyTorch on real images"),
        ("    kind: export", "image bytes in, class numbers out"),
        ("    data: data", "the images it is checked on"),
        ("    checkpoint: student", "the stage whose network is exported"),
        ("  engine:", "what will run on the device"),
        ("    kind: optimize", "builds an engine from exactly that ONNX file"),
        ("    onnx: onnx", "the stage whose file it is"),
        (f"    engine: {runtime}", comment),
    ]


def _measured(a: dict[str, Any]) -> list[tuple[str, str]]:
    split = [("    split: test", "the images the figures are for: nothing was chosen by them")] if a["data"] == "camvid" else []
    return [
        ("  measured:", "what each of them gets right, and how long it takes"),
        ("    kind: validate", "runs all over the same images"),
        ("    data: data", "whose images"),
        *split,
        ("    reference: student", "what the others are compared with"),
        ("    candidates: [teacher, baseline, onnx, engine]", "measured beside it"),
        ("    latency_of: [teacher, student, engine]", "those whose time is measured"),
        ("  gate:", "the rules; if one is broken, the run ends with exit code 3, if none is and one cannot be told, 4"),
        ("    kind: gate", "judges by the figures"),
        ("    measured: measured", "the stage that has them"),
        ("    rules:", "all of them must hold; a limit on time would be {metric: p50_ms, of: engine, at_most: 50}"),
        ("      - {metric: miou, of: engine, against: student, at_least: -0.2}", "mIoU points the engine may lose"),
        ("      - {metric: agreement, of: engine, at_least: 0.99}", "share of pixels where engine and student agree"),
        ("  bundle:", "a folder that runs on the device without this package"),
        ("    kind: bundle", "packs and tries it"),
        ("    data: data", "gives the sample image"),
        ("    onnx: onnx", "goes into it"),
        ("    engine: engine", "goes into it"),
        ("    measured: measured", "its figures are quoted in the bundle's README"),
        ("    verdict: gate", "a failed verdict is packed too, and marked"),
    ]


def _profile(a: dict[str, Any]) -> list[tuple[str, str]]:
    """A short schedule for machines without a GPU, which take a profile of this name by themselves."""
    size = [max(64, side // 4 // 32 * 32) for side in a["size"]]
    rates = {name: "2.0e-3" if a[f"{'teacher' if name == 'teacher' else 'student'}_model"] == "tiny" else "3.0e-4" for name in TRAINED}
    trained = TRAINED if a["teacher"] == "train" else TRAINED[1:]
    return [
        ("profiles:", "dotted path: value, laid over the stages; the same as --set path=value"),
        ("  cpu:", "taken where there is no GPU: it shows that all of it runs, not how well it learns"),
        ("    stages.data.limit: 60", "images per split"),
        (f"    stages.data.size: {size}", "small pictures"),
        *((f"    stages.{n}.fit: {{steps: 60, batch: 4, lr: {rates[n]}, warmup: 5, seed: 1}}", "a short schedule") for n in trained),
    ]


def _model(answer: str, tiny: str) -> str:
    if answer in SEGFORMERS:
        return f"{{kind: segformer, size: {answer}}}"
    return "{kind: hf}" if answer == "hf" else f"{{kind: tiny, size: {tiny}}}"


def _checked(answers: dict[str, Any]) -> dict[str, Any]:
    """The answers with defaults filled in, `size` as (height, width); all that cannot be used is said together."""
    a, problems = _looked_at(answers)
    if problems:
        raise together(Problem("--answer", 0, i, text) for i, text in enumerate(problems))
    return a


def _looked_at(answers: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The answers with defaults filled in, and "key: what is wrong with it"."""
    known = {key: default for key, _, default, _ in QUESTIONS}
    problems = [f"{key}: no question is called so{meant(key, known)}" for key in answers if key not in known]
    a = known | {key: value for key, value in answers.items() if key in known}
    for key, _, _, choices in QUESTIONS:
        if choices and a[key] not in choices:
            problems.append(f"{key}: found {shown(a[key])}, expected {listed(choices)}{meant(str(a[key]), choices)}")
    a["name"] = re.sub(r"[^a-z0-9_.-]+", "_", str(a["name"]).lower()).lstrip("_.-")[:64]
    if not a["name"]:
        problems.append(f"name: found {shown(answers.get('name'))}, expected letters and digits")
    problems += [f"{key}: {shown(a[key])} holds an invisible character" for key in a if not str(a[key]).isprintable()]
    if a["data"] in ("folder", "camvid", "cityscapes") and not a["root"]:
        problems.append(f"root: data {a['data']} lies in a folder of yours; say which")
    if a["teacher"] == "train" and a["teacher_model"] == "hf":
        problems.append("teacher_model: hf takes a given teacher; name its file or folder in teacher, or train a SegFormer")
    a["size"] = _size(a["size"])
    if a["size"] is None:
        problems.append(f"size: found {shown(answers.get('size'))}, expected height x width in multiples of 32, for example 512x1024")
    return a, problems


def _size(answer: Any) -> tuple[int, int] | None:
    """(height, width) from "256x512", "[256, 512]" or a pair of numbers."""
    words = answer if isinstance(answer, str) else "x".join(map(str, answer)) if isinstance(answer, list | tuple) else ""
    found = re.fullmatch(r"\[?(\d{1,4})(?: ?[x, ] ?)(\d{1,4})\]?", words.strip(), re.A)
    size = tuple(map(int, found.groups())) if found else ()
    return size if size and all(side and side % 32 == 0 for side in size) else None


def _text(value: Any) -> str:
    """Text as YAML: in quotes unless it is plainly a word or a path."""
    value = str(value)
    plain = re.fullmatch(r"[A-Za-z/][\w./-]*", value, re.A) and value not in ("true", "false", "null")
    return value if plain else json.dumps(value, ensure_ascii=False)


def _ask(key: str, question: str, answers: dict[str, Any], choices: tuple[str, ...] | None) -> str:
    """Asks until the answer can be used; `answers` are those so far, with the default of this one."""
    default = answers[key]
    if not sys.stdin.isatty():
        return default
    hint = f" ({'/'.join(choices)})" if choices else ""
    while True:
        try:
            answer = input(f"{question}{hint} [{default}]: ").strip() or default
        except EOFError:
            print()
            raise BadRecipe("the answers ended before the questions: nothing is written; begin anew, or answer with --answer") from None
        wrong = [text for text in _looked_at(answers | {key: answer})[1] if text.startswith(f"{key}: ")]
        if not wrong:
            return answer
        print(wrong[0].removeprefix(f"{key}: "))


def _line(code: str, comment: str) -> str:
    return f"{code:<{CODE}}  # {comment}" if code else f"# {comment}"
