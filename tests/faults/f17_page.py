"""F17: hostile texts in names, errors, facts and figures; the page and the terminal show them as text, and nothing of them acts.

Every payload stands in every place at once: names of classes, stages, recipes, profiles, samples, machines, metrics and files, error
texts, and the arguments of commands. The page is read by html.parser and once more sign by sign.
"""

import contextlib
import io
import itertools
import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
from common import ROOT, TOY

sys.path.append(str(ROOT / "tests/stages"))

QUICK = 27  # not a divisor of 500: a sample has many ways in, not one
COVERS = ("pipeline", "stages")
STAGES = ("teacher", "baseline", "student", "onnx", "engine", "measured", "gate")

ACTS = {  # what an attacker wants the reader's browser or terminal to do
    "script": "<script>alert(1)</script>",
    "script-src": "<script src=//evil.example/x.js></script>",
    "img": "<img src=x onerror=alert(1)>",
    "img-load": "<img src=https://evil.example/pixel.png>",
    "svg": "<svg/onload=alert(1)>",
    "svg-use": "<svg><use href='//evil.example/x.svg#a'/><animate onbegin=alert(1) attributeName=x></svg>",
    "iframe": "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "handler": " onmouseover=alert(1) x=",
    "javascript": "<a href='java&#10;script:alert(1)'>x</a>",
    "data": "<object data='data:text/html,<script>alert(1)</script>'></object>",
    "css": "red;background:url(https://evil.example/x);x:expression(alert(1))",
    "style": "<style>@import '//evil.example/x.css';*{display:none}</style>",
    "link": "<link rel=stylesheet href=//evil.example/x.css>",
    "meta": "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "base": "<base href=//evil.example/>",
    "form": "<form action=//evil.example><input name=a autofocus onfocus=alert(1)></form>",
    "mxss": "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "template": "{{constructor.constructor('alert(1)')()}}${alert(1)}<%= 7*7 %>{% raw %}#{7*7}",
    "entities": "&lt;script&gt;alert(1)&lt;/script&gt;&#60;b&#62;&Tab;&colon;",
    "ansi": "\x1b[2J\x1b[1;1H\x1b[31mroot#\x1b]0;owned\x07\x1b]8;;https://evil.example\x1b\\x\x1bc\x9b31m",
    "direction": "\u202egpj.exe\u202c\u2066\u200f\u061c\u2069",
    "lines": "passed\r\nengine       engine    made\n\u2028\u2029\x0b\x0c\x85done",
    "nul": "<scr\0ipt>\0alert(1)</scr\0ipt>\x08\x08\x7f\ufeff\ud800",
    "markup": "[red]x[/red][/][link=https://evil.example]y[/link]:smile:[@click=app.quit]",
    "long": "<b>" * 30_000,
}
ENTRIES = {  # what it might have to get out of first
    "bare": ("", ""),
    "quote": ('"', ""),
    "apostrophe": ("'", ""),
    "attribute": ("\">'>", "<x y='"),
    "backtick": ("`", "`"),
    "script": ("</script>", "<script>"),
    "SCRIPT": ("</ScRiPt\n>", ""),
    "style": ("}</style>", "<style>{"),
    "title": ("</title>", ""),
    "textarea": ("</textarea></noscript></xmp></template>", ""),
    "comment": ("-->", "<!--"),
    "open comment": ("<!--<script>", ""),
    "cdata": ("]]>", "<![CDATA["),
    "doctype": ("<!doctype html><?xml version='1.0'?>", ""),
    "json": ('\\"}]}', '{"a":["'),
    "escapes": ("\\u003c\\x3c%3C&#x3c;", ""),
    "wide": ("\uff1c\ufe64\u2039", "\uff1e"),
    "cell": ("</td></tr></table></section></main></body></html>", ""),
    "svg": ("</text></g></svg>", ""),
    "dots": ("../../../" * 3, "/x.html?y#z"),
}
TEXT = re.compile(r"[^\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\u2028-\u202e\u2066-\u2069\u200b-\u200f\u061c\ufeff]")
DRAWN = re.compile(r"\x1b\[(?:[\d;]*m|\d*[AK]|\?25[lh])|\r")  # what a progress bar itself tells a terminal


def cases():
    return [f"{entry}: {act}" for act, entry in itertools.product(ACTS, ENTRIES)]


def check(case, place):
    entry, _, act = case.partition(": ")
    before, after = ENTRIES[entry]
    payload = f"{before}{ACTS[act]}{after}"
    began = time.process_time()
    the_page_is_harmless(payload, place, STAGES[cases().index(case) % len(STAGES)])
    the_comparison_is_harmless(payload, place, STAGES[cases().index(case) % len(STAGES)])
    the_terminal_is_left_alone(payload, place)
    return {"seconds": time.process_time() - began}


def the_page_is_harmless(payload, place, stage):
    from test_page import Seen, assert_harmless, hostile

    from pipeline.artifact import Artifact
    from stages.page import render

    run, artifacts = hostile(place / "run", payload, stage)
    run |= {"error": payload, "sets": [payload]}
    run["resolved"]["stages"]["data"]["source"] = {"kind": payload, payload: [{payload: payload}]}
    run["stages"][3]["inputs"][payload] = [payload]
    facts_of = {name: artifact.facts for name, artifact in artifacts.items()}
    facts_of["data"]["splits"][payload] = 3
    facts_of["data"]["classes"].append(payload * 3)
    with contextlib.suppress(KeyError):  # unless it is the one that was renamed
        facts_of["baseline"]["model"]["size"] = payload
    artifacts["bundle"] = Artifact("bundle", payload, payload, artifacts["bundle"].folder)
    (artifacts.get("measured") or artifacts[payload]).file("image_0.png").write_bytes(b"no picture")
    html, facts = render(run, artifacts)
    seen = assert_harmless(html)
    assert not (found := TEXT.search(html)), f"the page holds {found[0]!r}"
    tags = re.findall(r"<(/?[a-z][a-z0-9]*)[ >]|<(!doctype html>)", html)
    assert len(tags) == html.count("<") == html.count(">"), "a sign on the page is not one of a tag's own"
    assert json.loads("".join(seen.data)) == facts
    assert_names_are_short(facts)
    assert set(Seen(html).all("a")) == set(), "the page links to nothing"


def the_comparison_is_harmless(payload, place, stage):
    """Of two runs in which everything is called so, and that differ in everything."""
    from dataclasses import replace

    from test_page import assert_harmless, hostile

    from pipeline.comparing import Story
    from stages.compare import compare

    sides = []
    for k in ("one", "two"):
        run, artifacts = hostile(place / k, payload, stage)
        sides.append((run["resolved"]["stages"], {name: replace(a, id=f"{k} {a.id}") for name, a in artifacts.items()}))
    runs = [dict.fromkeys(("run", "outcome", "started", "recipe", "profile", "file"), payload)] * 2
    told = {"recipe": [(payload, payload, {payload: [payload]})], "figures": [(payload, 1.0, 2)], "notes": [payload]}
    told |= {key: [payload] for key in ("code", "stages", "same")}
    story = Story(runs=runs, inputs=[settings for settings, _ in sides], at=[{stage: payload}] * 2, **told)
    html = compare(story, *(artifacts for _, artifacts in sides)).html
    assert_harmless(html)
    assert not (found := TEXT.search(html)), f"the page holds {found[0]!r}"
    tags = re.findall(r"<(/?[a-z][a-z0-9]*)[ >]|<(!doctype html>)", html)
    assert len(tags) == html.count("<") == html.count(">"), "a sign on the page is not one of a tag's own"


def assert_names_are_short(facts):
    """Whatever is called a name is at most 64 printable characters, and every line of a text can be printed."""
    for path, text in texts(facts):
        lines = text.split("\n") if path == "stages.error" else [text]  # an error stands in its lines
        assert all(line.isprintable() for line in lines), f"{path} holds {text!r}"
        if re.search(r"(?:^run\.(?:run|recipe|profile)|name|stage|title|split|reference|source)$", path):
            assert 0 < len(text) <= 64 + len("No-KD baseline "), f"{path} has {len(text)} characters"


def texts(value, path=""):
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield f"{path} key", key
            yield from texts(child, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for child in value:
            yield from texts(child, path)


def the_terminal_is_left_alone(payload, place):
    for terminal, bars in ((False, False), (False, True), (True, True)):
        with printed(terminal) as out:
            told_by_a_run(payload, bars)
        said = DRAWN.sub("", out.getvalue()) if terminal else out.getvalue()
        assert not (found := TEXT.search(said)), f"a run would tell the terminal {found[0]!r}"
        assert "\nengine " not in said, "a message poses as the line of a stage"
    with printed(False) as out:
        told_by_commands(payload, place)
    assert not (found := TEXT.search(out.getvalue())), f"a command would tell the terminal {found[0]!r}"
    assert "Traceback" not in out.getvalue()


def told_by_a_run(payload, bars):
    """Messages, progress and ends of stages, as a log and as bars."""
    from pipeline import show

    shown = show.Bars() if bars else show.Lines()
    with mock.patch.object(show.Lines, "EVERY", -1.0):
        try:
            shown.say(payload)
            shown.say(payload, stage=payload)
            shown.begin(payload, payload)
            shown.progress(payload, 1, 2, {payload: 0.5})
            shown.end(payload, payload, "failed", 1.0, payload)
        finally:
            shown.close()


def told_by_commands(payload, place):
    """Complaints about arguments and recipes; what `doctor` finds; what was noted of a run by somebody else."""
    from pipeline import doctor

    machine = {"cpu": payload, "gpus": [{"name": payload}], payload: [payload]}
    with mock.patch.object(doctor, "_packages", list):
        doctor.examine(place, SimpleNamespace(machine=lambda: machine, has_device=lambda: False, kernels=lambda: payload))
    written = json.dumps(payload.replace("\ud800", ""))
    mistakes = [f"name: {written}\nstages: {{one: {{kind: number}}}}", f"name: toy\nstages: {{one: {{kind: {written}, value: {written}}}}}"]
    mistakes += [f"name: toy\nstages: {{{written}: {{kind: number}}}}\nprofiles: {{{written}: {{{written}: 1}}}}", payload]
    for n, text in enumerate(mistakes):
        (place / f"{n}.yaml").write_text(text, encoding="utf-8", errors="replace")
        assert command("check", str(place / f"{n}.yaml")) == 2
    (place / "toy.yaml").write_text("name: toy\nstages: {one: {kind: number}}", encoding="utf-8")
    recipe = str(place / "toy.yaml")
    for arguments in ([payload], ["run", payload], ["plan", recipe, "--profile", payload], ["why", payload, recipe], ["ls", payload]):
        assert command(*arguments, store=place / "none") in (2, 5)
    for setting in (payload, f"stages.one.value={payload}", f"stages.{payload}=1"):
        assert command("check", recipe, "--set", setting) == 2
    another_run(payload, place / "store")
    for arguments in (["ls"], ["ls", "toy-1"], ["diff", "toy-1", "toy-2"]):
        assert command(*arguments, store=place / "store") == 0


def another_run(payload, store):
    """Two runs in a store that somebody handed over."""
    from pipeline.journal import Journal
    from pipeline.keys import canonical
    from pipeline.store import SCHEMA

    for n in (1, 2):
        folder = store / f"refs/runs/toy-{n}"
        folder.mkdir(parents=True)
        resolved = {"name": "toy", "stages": {"one": {payload: f"{payload}{n}"}}}
        journal = Journal(folder / "journal.jsonl")
        journal.write("begin", recipe="toy", file=payload, profile=payload, sets=[payload], sequence=n, resolved=resolved)
        journal.write("stage", stage=payload, state="failed", key=None, id=None, seconds=1.0, error=payload)
    (store / "store.json").write_bytes(canonical({"schema": SCHEMA, "hash": "sha256"}))


def command(*arguments, store=None):
    sys.path.append(str(TOY))
    import toy_stages

    from pipeline import cli

    arguments = [*arguments, "--store", str(store)] if store else list(arguments)
    return cli.main(arguments, cli.Parts(toy_stages.KINDS, lambda: True, dict, lambda *_: ("", {})))


@contextlib.contextmanager
def printed(terminal):
    class Out(io.StringIO):
        def isatty(self):
            return terminal

    out = Out()
    with mock.patch("sys.stdout", out), mock.patch("sys.stderr", out), mock.patch.dict("os.environ", {"TERM": "xterm", "COLUMNS": "200"}):
        yield out
