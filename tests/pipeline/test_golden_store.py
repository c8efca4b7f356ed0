"""A store as an earlier day wrote it, of each schema there was: it stays readable, and what is newer than this version is refused.

`python tests/pipeline/test_golden_store.py` writes the one of today's schema again. That is right only when the schema number went up
(then a folder is added beside the old ones) or before any store of this schema is in anybody's hands.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT))

from pipeline import store as stores  # noqa: E402
from pipeline.errors import BadStore  # noqa: E402
from pipeline.keys import canonical, digest, seal, unseal  # noqa: E402
from pipeline.store import Store  # noqa: E402

GOLDEN = ROOT / "tests/pipeline/golden"
SCHEMAS = sorted(GOLDEN.glob("schema*"))
TODAY = GOLDEN / f"schema{stores.SCHEMA}"
LATER = {"begin": {"origin"}}  # fields of journal entries that came since the golden store was written: its runs say "not recorded"
KEPT = ("store.json", "objects/sha256/*/*/*", "refs/cache/*.json", "refs/runs/*/journal.jsonl", "refs/pins/*.json", "keys/*.json")


def write(target):
    """A finished run of the golden recipe and a pin, without what names this machine or is made anew by any run."""
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Golden(Path(folder))
        place.call("run", "golden.yaml")
        place.call("store", "pin", "golden-1")
        for file in (f for pattern in KEPT for f in place.store.glob(pattern)):
            copy = target / file.relative_to(place.store)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
        for artifact in place.store.glob("objects/sha256/*/*"):
            artifact.chmod(0o700)


class Golden:
    """A folder with the golden recipe, perhaps with a golden store, and the command line that goes with them."""

    def __init__(self, folder, schema=None):
        self.folder, self.store = folder, folder / "store"
        self.recipe = shutil.copy(GOLDEN / "golden.yaml", folder)
        if schema:
            shutil.copytree(schema, self.store)
            closed(self.store)

    def call(self, *arguments, code=0):
        paths = os.pathsep.join((str(GOLDEN), str(ROOT)))
        command = [sys.executable, str(GOLDEN / "golden_table.py"), *arguments, "--store", "store"]
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=environment, timeout=60)
        said = done.stdout + done.stderr
        assert done.returncode == code and "Traceback" not in said, said
        return said

    def objects(self):
        return {p.relative_to(self.store).as_posix(): p.read_bytes() for p in self.store.glob("objects/sha256/*/*/*")}

    def ids(self):
        """{stage: id} as the journal tells."""
        return {e["stage"]: e["id"] for e in Store(self.store).journal("golden-1").read() if e["event"] == "stage"}


def closed(root):
    """The modes that git does not keep."""
    for path in (root, *root.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    for artifact in root.glob("objects/sha256/*/*"):
        for file in artifact.iterdir():
            file.chmod(0o444)
        artifact.chmod(0o555)


@pytest.fixture(params=SCHEMAS, ids=lambda path: path.name)
def golden(request, tmp_path):
    return Golden(tmp_path, request.param)


def test_there_is_a_golden_store_of_todays_schema():
    assert TODAY in SCHEMAS


def test_its_artifacts_are_found_and_every_byte_is_verified(golden):
    store = Store(golden.store).prepare()
    refs = sorted((golden.store / "refs/cache").iterdir())
    found = {a.id: a for ref in refs if (a := store.find(ref.stem, "it"))}
    assert len(found) == len(refs) == 4 and set(found) == set(golden.ids().values())
    for id in found:
        Store(golden.store).verify(id)
    word = found[golden.ids()["both"]]
    assert (word.kind, word.facts, word.beside["by"]) == ("Checkpoint", {"length": 11}, "word")
    assert word.file("word.txt").read_text() == "still-house"


def test_its_journal_and_its_keys_are_read(golden):
    store = Store(golden.store)
    assert store.runs() == ["golden-1"] and store.sequence("golden-1") == 1
    events = [(e["event"], e.get("stage")) for e in store.journal("golden-1").read()]
    assert events[0] == ("begin", None) and events[-1] == ("end", None)
    assert [stage for event, stage in events if event == "stage"] == ["one", "two", "both", "verdict"]
    for file in (golden.store / "keys").iterdir():
        assert digest(store.pre_image(file.stem)) == file.stem


def test_a_run_keeps_every_stage_of_it(golden):
    before = golden.objects()
    assert "every stage kept" in golden.call("run", "golden.yaml")
    assert golden.objects() == before and Store(golden.store).runs() == ["golden-1"]


def test_a_changed_recipe_goes_on_from_it(golden):
    assert "config.times: 1.0 -> 2.0" in golden.call("why", "both", "golden.yaml", "--set", "stages.both.times=2")
    before = golden.objects()
    said = golden.call("run", "golden.yaml", "--set", "stages.both.times=2", code=3)  # the word is too long now
    assert [line.split()[2] for line in said.splitlines() if line.split()[0] in golden.ids()][:4] == ["kept", "kept", "made", "made"]
    assert before.items() < golden.objects().items()
    golden.call("diff", "golden-1", "golden-2")


def test_it_is_good_and_nothing_in_it_is_swept(golden):
    assert "good" in golden.call("store", "fsck")
    before = golden.objects()
    assert "0 artifacts, 0 runs" in golden.call("store", "gc") and golden.objects() == before
    assert "golden-1" in golden.call("store", "pin")
    golden.call("store", "gc", "--keep", "0")
    assert golden.objects() == before
    golden.call("store", "pin", "golden-1", "--off")
    golden.call("store", "gc", "--keep", "0")
    assert not golden.objects()


def test_what_is_asked_of_it_is_answered(golden):
    assert "golden-1" in golden.call("ls") and "verdict" in golden.call("ls", "golden-1")
    assert '"length": 11' in golden.call("show", "golden-1/both")
    assert golden.call("report", "golden-1").strip().endswith("page.html")
    assert "Checkpoint" in golden.call("store", "size")


def test_damage_in_it_is_seen_and_made_good(golden):
    id = golden.ids()["one"]
    file = golden.store / "objects/sha256" / id[:2] / id / "letters.txt"
    file.chmod(0o600)
    file.write_text("stilL")
    assert id[:12] in golden.call("store", "fsck", code=5)
    golden.call("store", "fsck", "--repair")
    golden.call("run", "golden.yaml")
    assert file.read_text() == "still" and "good" in golden.call("store", "fsck")


# -- newer than this version


@pytest.mark.parametrize("more", [{}, {"hash": "blake3", "something": "unknown here"}], ids=["", "with other fields"])
def test_a_newer_store_is_refused_by_every_command_and_nothing_in_it_is_touched(golden, more):
    (golden.store / "store.json").write_bytes(canonical({"schema": stores.SCHEMA + 1, "hash": "sha256", **more}))
    before = snapshot(golden.store)
    for command in (
        ("run", "golden.yaml"),
        *(("store", *more) for more in (("fsck",), ("fsck", "--repair"), ("gc",), ("pin", "golden-1"), ("size",))),
    ):
        said = golden.call(*command, code=5)
        assert f"schema {stores.SCHEMA + 1}" in said and f"reads {stores.SCHEMA}" in said and "newer version" in said
    assert snapshot(golden.store) == before


def test_a_newer_artifact_is_refused_and_not_taken_for_damage(golden):
    id = newer_artifact(golden, "one")
    before = snapshot(golden.store)
    for command in (("run", "golden.yaml"), ("store", "fsck"), ("store", "fsck", "--repair")):
        said = golden.call(*command, code=5)
        assert id[:12] in said and f"schema {stores.SCHEMA + 1}" in said and f"up to {stores.SCHEMA}" in said
    assert snapshot(golden.store)["objects"] == before["objects"] and not list((golden.store / "quarantine").iterdir())
    with pytest.raises(BadStore, match="newer version"):
        Store(golden.store).verify(id)


def newer_artifact(golden, stage):
    """The artifact of a stage as a later version would have written it: sound, with a number that is unknown here."""
    store, old = Store(golden.store), golden.ids()[stage]
    manifest = {**store.manifest(old), "schema": stores.SCHEMA + 1}
    id = digest(manifest)
    store.folder(id).parent.mkdir(exist_ok=True)
    shutil.copytree(store.folder(old), store.folder(id))
    store.folder(id).chmod(0o755)
    (store.folder(id) / "MANIFEST.json").unlink()
    (store.folder(id) / "MANIFEST.json").write_bytes(canonical(manifest))
    for ref in (golden.store / "refs/cache").iterdir():
        record = unseal(ref.read_bytes())
        if record["id"] == old:
            ref.write_bytes(seal({**record, "id": id}))
    return id


def test_a_key_of_a_newer_schema_is_another_key_and_why_says_so(golden):
    """Keys are made anew from the recipe each time: one with another number leads nowhere here, and its stage runs."""
    store = Store(golden.store)
    entry = next(e for e in store.journal("golden-1").read() if e["event"] == "stage" and e["stage"] == "one")
    image = {**store.pre_image(entry["key"]), "schema": 2}
    (golden.store / "keys" / f"{digest(image)}.json").write_bytes(seal(image))
    (golden.store / "refs/cache" / f"{entry['key']}.json").rename(golden.store / "refs/cache" / f"{digest(image)}.json")
    store.note("golden-1", "stage", **{**{k: v for k, v in entry.items() if k not in ("event", "at")}, "key": digest(image)})
    assert "schema: 2 -> 1" in golden.call("why", "one", "golden.yaml")
    assert "one" in golden.call("run", "golden.yaml")


def snapshot(root):
    """{top: {path: (mode, bytes)}} without what a command may lock."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not name.startswith("locks"):
            found.setdefault(name.partition("/")[0], {})[name] = (oct(path.stat().st_mode), path.read_bytes() if path.is_file() else b"")
    return found


# -- the fixture itself


def test_todays_code_writes_what_the_golden_store_holds(tmp_path):
    """What changes here changes what older versions must read: raise the schema number and add a golden store."""
    write(tmp_path / "anew")
    names = [{p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()} for root in (TODAY, tmp_path / "anew")]
    assert names[0] == names[1]
    for name in sorted(names[0]):
        old, new = (TODAY / name).read_bytes(), (tmp_path / "anew" / name).read_bytes()
        if name.startswith("refs/cache"):
            old, new = ({**unseal(data), "beside": sorted(unseal(data)["beside"])} for data in (old, new))
        elif name.startswith("refs/runs"):
            old, new = (
                [(e["event"], sorted(e.keys() - LATER.get(e["event"], set()))) for e in journal(data, tmp_path)] for data in (old, new)
            )
        assert old == new, name


def journal(data, folder):
    from pipeline.journal import Journal

    (folder / "journal").write_bytes(data)
    return Journal(folder / "journal").read()


def test_the_fixture_is_text_and_names_no_machine():
    for file in (f for schema in SCHEMAS for f in schema.rglob("*") if f.is_file()):
        text = file.read_text(encoding="utf-8")
        assert "\r" not in text and not re.search(r'"/|[A-Z]:\\|/(home|tmp|root|work|Users)\b|"host"', text), file


if __name__ == "__main__":
    write(TODAY)
    print(f"wrote {TODAY}")
