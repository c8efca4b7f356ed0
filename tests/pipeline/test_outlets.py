"""Where CI looks: the verdict on one screen, as JUnit XML and as Markdown, from entries of verdict.json with hostile names in them."""

import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from pipeline import cli, junit, released, report, show, summary, verdict
from pipeline.store import Store
from stages import KINDS

ROOT = Path(__file__).resolve().parents[2]
BEGIN = {"recipe": "guard", "profile": "cpu", "file": "recipes/guard.yaml", "sets": []}
CACHES = ("cache/restore@v5", "cache/save@v5")
HOSTILE = (
    "a|b `c` <img src=x onerror=alert(1)> @everyone #7 [x](http://e.org) www.e.org ![i](u) \x1b[2J\x00\ud800\ufffe ::error:: ]]> &lt; $x$"
)


def entry(passed, metric="miou", value=-0.012, limit="at_least -0.05", against="student", text="", **more):
    text = text or f"{metric} of engine is 41.29 points, of {against} 41.3 points, difference {value} points; {limit} was asked"
    numbers = {"value": value, "value_of": 41.29, "value_against": 41.302}
    return {"metric": metric, "of": "engine", "against": against, "limit": limit, "passed": passed, "text": text} | numbers | more


def usual(count=8):
    """A usual gate: names as long as they come, two rules broken."""
    many = [entry(True), entry(True, "agreement", 0.99895, "at_least 0.998")]
    many.append(entry(True, "iou.person", -0.4, "at_least -3", "released", low_power=True))
    slow = "engine_cpu_p50_ms of engine against released: 8.3 % slower, between 7.1 and 9.4 % (95 %), after 10 rounds; slower by 2.5 % or "
    slow += "less would give rounds this slow in 1 of 1024 cases; a ratio of at most 1.05 was asked"
    many += [entry(False, "engine_cpu_p50_ms", 1.083, "at_most_ratio 1.05", "released", slow)] * 2
    busy = "in 47 % of the time somebody waited for a core (at most 20 %)"
    many += [entry(None, m, None, "at_most_ratio 1.05", "released", f"{m}: {busy}", problem=busy) for m in ("p50_ms", "engine_p50_ms")]
    return [*many, entry(True, "size_mb", 1.0, "at_most_ratio 1.05", "released")][:count]


@pytest.fixture
def told(tmp_path, monkeypatch):
    """read(rules): a verdict on them; the store is empty."""
    monkeypatch.chdir(tmp_path)
    store = Store(Path(".stillhouse")).prepare()

    def read(rules, begin=BEGIN, **more):
        outcomes = [rule.get("passed") for rule in rules]
        whole = {"passed": False if False in outcomes else None if None in outcomes else True, "rules": rules, "machine": "EPYC, 2 cores"}
        return verdict.read(whole | more, "gate", "guard-7", begin, store)

    return read


def text_of(said):
    return [line for line, _ in said]


# -- one screen


def test_a_narrow_terminal_does_not_cut_the_names_of_rules(told):
    lines = text_of(verdict.screen(told([entry(True), entry(True, against="released", low_power=True)]), 60))
    assert "miou of engine vs student " in lines[1] and "miou of engine vs released " in lines[2]


@pytest.mark.parametrize("columns", [80, 100])
def test_a_usual_gate_stands_on_one_screen_and_what_is_broken_comes_last(told, columns):
    lines = text_of(verdict.screen(told(usual()), columns))
    assert len(lines) <= 24 and max(map(len, lines)) <= columns
    assert lines[0] == "gate of guard-7 (cpu profile): FAILED, 2 of 8 rules FAILED, 2 undecided"
    assert [line.split()[0] for line in lines[1:9]] == ["passed"] * 4 + ["undecided"] * 2 + ["FAILED"] * 2
    assert lines[1].split() == ["passed", *["miou", "of", "engine", "vs", "student"], "-0.012", "at_least", "-0.05"]
    assert lines[3].endswith("at_least -3 (low power)")
    assert {line.index("at_") for line in lines[1:9]} == {lines[1].index("at_")}, "limits stand under each other"
    assert lines[9].startswith("2 rules cannot be told: in 47 % of the time somebody waited")
    assert " ".join(" ".join(lines[9:]).split()).count("FAILED: " + usual()[3]["text"]) == 2


def test_twelve_broken_rules_do_not_leave_the_screen(told):
    lines = text_of(verdict.screen(told(usual()[3:4] * 12), 80))
    assert len(lines) <= 24 and any("more: summary.md" in line for line in lines)
    assert len(text_of(verdict.screen(told(usual()[3:4] * 12 + [entry(True)] * 9, BEGIN), 80))) <= 28, "and one more sentence in any case"


@pytest.mark.parametrize(
    "value, limits, shown",
    [(0.99895, "at_least 0.999", "0.99895"), (1.05, "at_most_ratio 1.05", "1.05"), (-0.0500000001, "at_least -0.05", "-0.0500000001"),
     (1234567.0, "", "1.235e+06"), (0.998951234567, "at_least 0.999", "0.998951"),
     (None, "at_most 3", "-"), (10**400, "at_most 3", "-"), (0.04999, "at_most 0.05", "0.04999")],
)  # fmt: skip
def test_a_figure_has_as_many_digits_as_show_on_which_side_of_its_limit_it_lies(value, limits, shown):
    assert verdict.figure(value, limits) == shown


@pytest.mark.parametrize(
    "damage", [None, [], {}, {"rules": []}, {"rules": [3], "passed": True}, {"rules": [{"passed": "yes"}], "passed": True}]
)
def test_a_verdict_that_cannot_be_read_has_not_passed(tmp_path, damage):
    found = verdict.read(damage, "gate", "guard-7", BEGIN, Store(tmp_path / "store").prepare())
    assert found.passed is False and [rule.passed for rule in found.rules] == [False]


def test_undecided_names_the_command_that_helps(told):
    without = {"file": "baselines/guard.cpu.json", "content": None, "problem": "does not exist"}
    assert told([entry(None)], released=without).next[0].startswith("python -m pipeline gate guard-7 --accept ")
    id = "f" * 64
    lacking = {"file": "baselines/guard.cpu.json", "content": {"run": "guard-1", "artifacts": {id: "OnnxModel"}}, "problem": ""}
    begin = BEGIN | {"file": "recipes/my guard.yaml", "sets": ["stages.data.size=[96, 192]"]}
    assert told([entry(None)], begin, released=lacking).next == [
        f"python -m pipeline store pull DIR {id[:12]}",
        "python -m pipeline run 'recipes/my guard.yaml' --profile cpu --set 'stages.data.size=[96, 192]'",
    ]
    assert told([entry(True)], released=lacking).next == [] == told([entry(None)]).next
    elsewhere = {"file": "typo/guard.json", "content": None, "problem": "does not exist"}  # by --baseline: accepting would write another
    assert told([entry(None)], released=elsewhere).next == []


def test_commands_are_for_the_store_that_was_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert verdict.command(Store(Path(".stillhouse")), "diff", "a-1", "a-2") == "python -m pipeline diff a-1 a-2"
    assert verdict.command(Store(tmp_path / "my store"), "ls") == f"python -m pipeline ls --store '{tmp_path}/my store'"


def test_colours_are_for_terminals_only(told, capsys, monkeypatch):
    assert verdict.show(told(usual())) is False and "\x1b" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with show.discreet({}):
        verdict.show(told([entry(False, "iou.\x1b[2Jx")]))
    out = capsys.readouterr().out
    assert "\x1b[1;31m" in out and "\x1b[2J" not in out and "iou.x of engine" in out


# -- JUnit


def test_junit_holds_one_case_per_rule_and_undecided_is_an_error(told):
    root = ElementTree.fromstring(junit.xml([told(usual())]))
    [suite] = root
    assert (root.tag, suite.attrib) == (
        "testsuites",
        {"name": "gate of guard-7 (cpu profile)", "tests": "8", "failures": "2", "errors": "2", "skipped": "0", "time": "0"},
    )
    properties = {one.get("name"): one.get("value") for one in suite.find("properties")}
    assert list(properties) == ["run", "recipe", "profile", "machine", "baseline"] and properties["machine"] == "EPYC, 2 cores"
    cases = suite.findall("testcase")
    assert {case.get("classname") for case in cases} == {"guard.gate"} and len({case.get("name") for case in cases}) == 8
    assert [[child.tag for child in case] for case in cases] == [["system-out"]] * 3 + [["failure"]] * 2 + [["error"]] * 2 + [
        ["system-out"]
    ]
    failure = cases[3][0]
    assert failure.get("message") == "FAILED: found 1.083, asked at_most_ratio 1.05" and failure.text == usual()[3]["text"]


def test_rules_of_one_name_take_their_limits_into_it_and_others_keep_theirs(told):
    rules = told([entry(True), entry(True, limit="at_least 0"), entry(True, limit="at_least 0"), entry(True, "size_mb")]).rules
    assert junit.names(rules) == [
        "miou of engine vs student, at_least -0.05",
        "miou of engine vs student, at_least 0",
        "miou of engine vs student, at_least 0 (2)",
        "size_mb of engine vs student",
    ]


def test_xml_is_well_formed_whatever_names_hold(told):
    released = {"file": HOSTILE, "content": {"run": HOSTILE, "artifacts": {}}, "problem": ""}
    begin = {"recipe": HOSTILE, "profile": HOSTILE, "file": HOSTILE}
    rule = entry(None, HOSTILE, against=HOSTILE, limit=HOSTILE, text=HOSTILE, problem=HOSTILE)
    found = told([rule], begin, machine=HOSTILE, released=released)
    root = ElementTree.fromstring(junit.xml([found]).encode("utf-8"))
    assert "onerror=alert(1)> @everyone" in root[0].find("testcase/error").text
    assert "".join(c for c in "".join(root.itertext()) if not c.isprintable()).strip() == ""


# -- Markdown


class Seen(HTMLParser):
    """Which elements a browser makes of it."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.cells, self.text = set(), 0, ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.cells += tag == "td"

    def handle_data(self, data):
        self.text += data


def rendered(text):
    from markdown_it import MarkdownIt  # comes with rich

    return Seen(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def test_the_summary_tells_the_verdict_first_then_rules_and_what_changed(told):
    released = {"file": "baselines/guard.cpu.json", "content": {"run": "guard-1", "artifacts": {}}, "problem": ""}
    written = summary.markdown([told(usual(), released=released, conditions=["somebody waited for a core"])], "runs/guard-7/page.html")
    seen = rendered(written)
    assert written.startswith("## FAILED: gate of guard-7 \\(cpu profile\\)\n\n2 of 8 rules FAILED, 2 undecided.\n")
    assert "| miou of engine vs student | -0.012 | at\\_least -0.05 | passed |" in written
    assert "Baseline: baselines/guard.cpu.json, run guard-1." in seen.text and "41.29" in seen.text and "-0.012 (-0.03%)" in seen.text
    assert "Times by the clock say nothing: somebody waited for a core" in seen.text and "Page: runs/guard-7/page.html" in seen.text
    assert seen.cells == 4 * 8 + 4 * 6


def test_nothing_in_a_summary_acts_whatever_names_hold(told):
    hostile = entry(False, HOSTILE, against=HOSTILE, limit=HOSTILE, text=HOSTILE)
    begin = {key: HOSTILE for key in ("recipe", "profile", "file")}
    place = released.place(Path(HOSTILE), HOSTILE, HOSTILE)
    known = {"file": f"{place.parent.name}/{place.name}", "content": {"run": HOSTILE, "artifacts": {}}, "problem": ""}
    written = summary.markdown([told([hostile], begin, released=known, machine=HOSTILE, conditions=[HOSTILE])], HOSTILE)
    seen = rendered(written)
    assert seen.tags == {"h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "strong", "ul", "li", "pre", "code"}
    assert seen.cells == 4 and "<img src=x onerror=alert(1)>" in seen.text
    shown = seen.text.partition("What to do")[0]
    assert not any(word in shown for word in ("@everyone", "#7", "://", "www.e", "\x1b"))
    assert "GH-12" not in summary.text("see GH-12") and "GHz" in summary.text("at 3 GHz")


def test_a_summary_stays_far_below_what_github_takes(told):
    written = summary.markdown([told([entry(False, text="<" * 5000)] * 3000)], "page.html")
    assert len(written.encode()) < 900_000 and "2800 more rules are on the page" in written


# -- through the command line


def test_a_run_and_gate_leave_both_beside_the_page_and_a_kept_run_puts_its_own_back(tmp_path):
    (tmp_path / "toy.yaml").write_text(
        "name: toy\nstages:\n  one: {kind: number, value: 3}\n  sum: {kind: sum, of: [one]}\n"
        "  judge: {kind: judge, of: sum, at_most: 10, against: released}\n"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}:{ROOT}", "TOY_DEVICE": "1"}

    def call(*words):
        done = subprocess.run([sys.executable, here / "toy_main.py", *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    folder = tmp_path / "runs/toy-1"
    assert call("run", "toy.yaml")[0] == 4
    first = (folder / "summary.md").read_text()
    assert first.startswith("## undecided: judge of toy-1\n") and (folder / "page.html").exists()
    assert call("gate", "--accept")[0] == 0 and call("gate")[0] == 0
    assert (folder / "summary.md").read_text().startswith("## passed: judge of toy-1\n\n2 rules hold.")
    assert 'errors="0"' in (folder / "junit.xml").read_text()
    (tmp_path / "baselines/toy.json").rename(tmp_path / "baselines/away.json")
    code, said = call("run", "toy.yaml")
    assert code == 4 and "every stage kept" in said and (folder / "summary.md").read_text() == first
    assert call("gate", "--out", "elsewhere")[0] == 4 and (tmp_path / "elsewhere/toy-1/junit.xml").exists()
    assert not list(folder.glob(".*"))


# -- the workflows in docs/ci


@pytest.mark.parametrize("file", sorted((ROOT / "docs/ci").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_command_of_a_workflow_is_one_that_the_command_line_knows(file):
    workflow = yaml.safe_load(file.read_text())
    environment, commands, used = workflow["env"], [], set()
    assert workflow["permissions"] == {"contents": "read"}
    assert {"pull_request", "workflow_dispatch"} <= set(workflow[True])  # what YAML 1.1 makes of `on`
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            used |= {step["uses"]} if "uses" in step else set()
            script = re.sub(r"\$\{?(\w+)\}?", lambda name: environment.get(name[1], name[0]), step.get("run", ""))
            commands += re.findall(r"python3? -m pipeline ([^|;&\n]*)", script)
    for command in commands:
        asked = cli.parser().parse_args(shlex.split(command))
        for value in (getattr(asked, "recipe", None), Path(environment["RECIPE"])):
            assert value is None or (ROOT / value).is_file()
    assert {c.split()[0] for c in commands} >= {"run", "gate", "store"} and any("store pull" in c for c in commands)
    assert used <= {f"actions/{action}" for action in ("checkout@v6", "setup-python@v6", "upload-artifact@v6", *CACHES)}
    name, path = re.search(r"^name: (\w+)", (ROOT / environment["RECIPE"]).read_text(), re.M)[1], Path(environment["RECIPE"])
    assert released.place(path, name, environment.get("PROFILE")) == Path(environment["BASELINE"])
    steps = [step for job in workflow["jobs"].values() for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
    kept = [step for step in steps if step.get("if") == "${{ always() }}"]
    assert kept and all(word in step["with"]["path"] for step in kept for word in ("page.html", "junit.xml", "summary.md"))


def test_a_setting_that_reads_like_the_name_of_a_stage_is_no_input_of_the_page():
    stages = dict.fromkeys(["data", "onnx", "openvino", "int8"])
    settings = {"kind": "quantize", "data": "data", "onnx": "onnx", "to": "int8", "runtime": "openvino"}
    assert report._inputs(settings, stages, KINDS) == {"data": ["data"], "onnx": ["onnx"]}
    assert report._inputs({"kind": "validate", "data": "data", "reference": "int8", "candidates": ["onnx", "openvino"]}, stages, KINDS) == {
        "data": ["data"],
        "reference": ["int8"],
        "candidates": ["onnx", "openvino"],
    }
    assert report._inputs({"kind": "of another version", "data": "data"}, stages, KINDS) == {}


@pytest.mark.parametrize("file", sorted((ROOT / "docs/ci").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_check_to_require_is_never_skipped_and_green_after_exit_code_0_alone(file):
    job = yaml.safe_load(file.read_text())["jobs"]["verdict"]
    [step] = job["steps"]
    assert job["if"] == "${{ always() }}" and step["env"]["CODE"].startswith("${{ inputs.accept && 'accept' || ")
    assert step["env"]["CODE"].endswith(" || needs.gate.outputs.code || '1' }}")
    ended = {
        code: subprocess.run(["bash", "-ec", step["run"]], env={"CODE": code}).returncode for code in ("0", "1", "3", "4", "143", "accept")
    }
    assert ended == {"0": 0, "1": 1, "3": 3, "4": 4, "143": 1, "accept": 1}
