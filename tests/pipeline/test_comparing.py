"""`diff` over toy runs: what was changed, what was made anew and why, and what is said where something is not there any more."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import toy_stages

from pipeline import cli, origin
from pipeline.comparing import Section, Told
from pipeline.keys import digest, seal
from pipeline.store import Store

RECIPE = """
name: toy
stages:
  one: {kind: number, value: 1}
  sum: {kind: sum, of: [one]}
  judge: {kind: judge, of: sum, at_most: 10}
"""


class Toy:
    def __init__(self, folder):
        self.folder, self.recipe, self.told = folder, folder / "toy.yaml", None
        self.recipe.write_text(RECIPE)
        self.store = Store(folder / "store")

    def call(self, *words, code=0, **more):
        parts = cli.Parts(toy_stages.KINDS, lambda: True, lambda: {"cpu": "toy"}, lambda *_: ("", {}), **more)
        assert cli.main([*words, "--store", str(self.folder / "store"), "--out", str(self.folder / "runs")], parts) == code

    def run(self, *sets, code=0):
        self.call("run", str(self.recipe), *(word for text in sets for word in ("--set", text)), code=code)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """toy-1; toy-2 with another factor; toy-3, whose first stage fails."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    toy = Toy(tmp_path_factory.mktemp("comparing"))
    toy.run()
    toy.run("stages.sum.times=20", code=3)
    toy.run("stages.one={kind: number, value: 5, fail: data}", code=2)
    yield toy
    monkeypatch.undo()


def said(toy, capsys, one, two, **more):
    capsys.readouterr()
    toy.call("diff", one, two, **more)
    return capsys.readouterr().out


def test_causes_come_first_and_the_stages_say_why_they_were_made_anew(made, capsys):
    out = said(made, capsys, "toy-1", "toy-2")
    assert out.index("stages.sum.times: 1.0 -> 20.0  (+19)") < out.index("sum made anew: its settings (times)")
    assert "made anew because of what they take: judge" in out and "sum.value: 1.0 -> 20.0  (+19)" in out
    assert "toy-1: good" in out and "toy-2: gate failed" in out and "the same: code; stages one" in out


def test_a_run_beside_itself_is_the_same_in_one_line(made, capsys):
    lines = said(made, capsys, "toy-1", "toy-1").splitlines()
    assert lines[3:] == ["the same: recipe; code; other figures; stages one, sum, judge"]


def test_an_unfinished_run_says_what_was_not_reached(made, capsys):
    out = said(made, capsys, "toy-1", "toy-3")
    assert "failed in toy-3: one" in out and "not reached in toy-3: sum, judge" in out and "toy-3: exit 2" in out


def test_what_the_stages_tell_stands_between_causes_and_figures_and_its_page_is_written(made, capsys):
    def compare(story, one, two):
        assert one["sum"].facts == {"value": 1.0} and two["sum"].facts == {"value": 20.0}
        return Told([Section("data", ["one: <b>"])], [Section("accuracy", ["better"]), Section("size", [])], "<html>", {"a": 1})

    out = said(made, capsys, "toy-1", "toy-2", compare=compare)
    places = [out.index(word) for word in ("\nrecipe", "\ndata", "\nstages", "\naccuracy", "\nother figures", "\nthe same: code; size")]
    assert places == sorted(places)
    page = made.folder / "runs/toy-1..toy-2/diff.html"
    assert page.read_text() == "<html>" and page.with_suffix(".json").exists() and str(page) in out


def test_what_was_swept_is_said_in_one_line(made, capsys):
    store, entry = made.store, next(e for e in made.store.journal("toy-1").read() if e.get("stage") == "sum" and e["event"] == "stage")
    folder = store.folder(entry["id"])
    aside = folder.with_name("aside")
    folder.chmod(0o755)
    folder.rename(aside)
    key = store.root / "keys" / f"{entry['key']}.json"
    image = key.read_bytes()
    key.unlink()
    try:
        out = said(made, capsys, "toy-1", "toy-2")
    finally:
        aside.rename(folder)
        key.write_bytes(image)
    assert f"note: sum of toy-1 is not compared: artifact {entry['id'][:12]} is not in the store any more" in out
    assert "sum made anew: why is not known any more, its key was swept" in out


def test_a_damaged_verdict_is_not_opened_and_stays_where_it_is(made, capsys):
    entry = next(e for e in made.store.journal("toy-2").read() if e.get("stage") == "judge" and e["event"] == "stage")
    file = made.store.folder(entry["id"]) / "verdict.json"
    before = file.read_bytes()
    file.chmod(0o644)
    file.write_text("{}")
    try:
        out = said(made, capsys, "toy-1", "toy-2", compare=lambda story, one, two: Told([Section("has", list(two))], [], "", {}))
    finally:
        file.write_bytes(before)
    assert "judge of toy-2 is not compared" in out and "verdict.json is not the file that was published" in out
    assert out.partition("\nhas\n")[2].split()[:2] == ["one", "sum"]


def test_code_that_gives_other_results_is_named_by_stage_kind_and_version(made, capsys):
    """As if the stage `sum` had had another version in the first run."""
    store, entry = made.store, next(e for e in made.store.journal("toy-1").read() if e.get("stage") == "sum" and e["event"] == "stage")
    image = store.pre_image(entry["key"])
    file = store.root / "keys" / f"{entry['key']}.json"
    before = file.read_bytes()
    file.write_bytes(seal({**image, "version": 7, "rows": {"model": ["tiny", 1]}}))
    try:
        out = said(made, capsys, "toy-1", "toy-2")
    finally:
        file.write_bytes(before)
    assert "stage kind sum: version 7 -> 1 (sum)" in out and "sum made anew: its code; its settings (times)" in out
    assert digest(image) == entry["key"]


def test_a_run_notes_its_code_its_packages_and_its_machine_and_older_ones_are_said_to_lack_them(made, capsys):
    begin = made.store.journal("toy-1").read()[0]
    assert begin["origin"]["machine"] == {"cpu": "toy"} and begin["origin"]["code"] == origin.code()
    assert set(begin["origin"]["code"]) == {"revision", "pipeline", "stages", "kernels"} and "pydantic" in begin["origin"]["versions"]
    old = {key: value for key, value in begin.items() if key not in ("event", "origin", "at")}
    other = {**begin["origin"], "machine": {"cpu": "other"}, "code": {**begin["origin"]["code"], "stages": "0" * 64}}
    for name, more in (("toy-8", {}), ("toy-9", {"origin": other})):
        (made.store.root / "refs/runs" / name).mkdir()
        made.store.journal(name).write("begin", **{**old, **more})
    out = said(made, capsys, "toy-1", "toy-8")
    assert "not recorded for toy-8: code, packages and machine" in out and "toy-8: unfinished" in out
    out = said(made, capsys, "toy-1", "toy-9")
    assert 'machine cpu: "toy" -> "other"' in out and "stages/: its files differ, edited without a commit" in out


def test_the_revision_is_read_from_gits_own_files(tmp_path):
    sha = "0123456789abcdef0123456789abcdef01234567"
    assert origin.revision(tmp_path) is None
    (tmp_path / "HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / "packed-refs").write_text(f"# pack-refs\n{sha} refs/heads/main\n{'f' * 40} refs/heads/other\n")
    assert origin.revision(tmp_path) == sha
    (tmp_path / "refs/heads").mkdir(parents=True)
    (tmp_path / "refs/heads/main").write_text(f"{'a' * 40}\n")
    assert origin.revision(tmp_path) == "a" * 40
    (tmp_path / "HEAD").write_text(f"{sha}\n")
    assert origin.revision(tmp_path) == sha


def test_what_an_editor_leaves_beside_the_code_is_no_part_of_it(tmp_path):
    (tmp_path / "gate.py").write_text("1")
    before = origin._digest(tmp_path)
    (tmp_path / ".#gate.py").symlink_to("somebody@somewhere.123")
    (tmp_path / "lost.py").symlink_to("nowhere")
    assert origin._digest(tmp_path) == before
    (tmp_path / "gate.py").write_text("2")
    assert origin._digest(tmp_path) != before
