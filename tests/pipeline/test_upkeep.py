"""Looking after a store, through the real command line over the toy table: gc, pins, fsck, size."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline import locks
from pipeline.gc import sweep
from pipeline.store import Store
from tests.pipeline.toy_place import Place, wait_for


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def store_of(place):
    return Store(place.folder / ".stillhouse")


def objects(place):
    return {p.name for p in store_of(place).root.glob("objects/sha256/*/*")}


def changed_run(place):
    place.run()
    before = objects(place)
    place.edit("value: 2}", "value: 5}")
    place.run()
    return before


def spoil(folder, name="number.txt", text="7"):
    os.chmod(folder, 0o755)
    os.chmod(folder / name, 0o644)
    (folder / name).write_text(text)


def test_gc_keeps_what_any_run_made(place):
    changed_run(place)
    before = objects(place)
    out = place.call("store", "gc")
    assert "0 artifacts, 0 runs" in out and objects(place) == before
    assert "every stage kept" in place.run()


def test_gc_keep_1_frees_what_only_older_runs_needed(place):
    old = changed_run(place)
    dry = place.call("store", "gc", "--keep", "1", "--dry-run")
    assert "would free" in dry and old <= objects(place)
    place.call("store", "gc", "--keep", "1")
    left = objects(place)
    assert not old <= left and place.call("ls").split()[0] == "toy-2"
    assert not list(store_of(place).root.glob("trash/*"))
    assert "every stage kept" in place.run() and objects(place) == left
    place.edit("value: 5}", "value: 2}")
    place.run()
    assert old <= objects(place)


def test_what_is_pinned_stays(place):
    old = changed_run(place)
    assert "toy-1/sum" in place.call("store", "pin", "toy-1/sum") and "toy-1/sum" in place.call("store", "pin")
    id = json.loads(place.call("show", "toy-1/sum"))["id"]
    place.call("store", "gc", "--keep", "1")
    assert id in objects(place) and not old <= objects(place)
    assert "did you mean 'toy-1/sum'" in place.call("store", "pin", "--off", "toy-1/sun", code=2)
    place.call("store", "pin", "--off", "toy-1/sum")
    place.call("store", "gc", "--keep", "1")
    assert id not in objects(place)


def test_a_pinned_run_stays_whole(place):
    old = changed_run(place)
    place.call("store", "pin", "toy-1")
    place.call("store", "gc", "--keep", "1")
    assert old <= objects(place) and "toy-1" in place.call("ls")


def test_a_damaged_pin_stops_gc_rather_than_losing_what_it_kept(place):
    changed_run(place)
    place.call("store", "pin", "toy-1/sum")
    (pin,) = store_of(place).root.glob("refs/pins/*.json")
    pin.write_bytes(pin.read_bytes()[:-3])
    before = objects(place)
    assert "is damaged" in place.call("store", "gc", "--keep", "1", code=5)
    assert objects(place) == before


def test_a_damaged_journal_stops_gc_as_long_as_its_run_counts(place):
    changed_run(place)
    before = objects(place)
    journal = store_of(place).journal("toy-1").path
    journal.write_bytes(journal.read_bytes().replace(b'"made"', b'"mode"', 1))
    assert "the journal of toy-1 has entries that cannot be read" in place.call("store", "gc", code=5)
    assert objects(place) == before
    place.call("store", "gc", "--keep", "1")


def test_gc_clears_what_killed_runs_left_and_not_what_a_run_is_writing(place):
    place.run()
    store = store_of(place)
    (store.root / "tmp" / f"{'a' * 64}.host.1.ff").mkdir()
    (store.root / "state" / ("b" * 64)).mkdir()
    (store.root / "tmp" / f"{'c' * 64}.host.1.ff").mkdir()
    with locks.alone(store.alone("c" * 64), "toy-9", None):
        swept = sweep(store)
    assert {p.name[0] for p in swept.others} == {"a", "b"}
    assert [p.name[0] for p in store.root.glob("tmp/*")] == ["c"]


def test_an_artifact_whose_run_was_killed_before_it_said_made_stays(place):
    place.run()
    journal = store_of(place).journal("toy-1").path
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join(line for line in lines if b'"event":"stage"' not in line))
    before = objects(place)
    place.call("store", "gc")
    assert objects(place) == before


def test_an_interrupted_sweep_is_finished_by_the_next(place):
    changed_run(place)
    store = store_of(place)
    (store.root / "trash/old").mkdir()
    (store.root / "trash/old/file").write_text("x")
    place.call("store", "gc")
    assert not list(store.root.glob("trash/*"))


def test_fsck_is_quiet_about_a_sound_store(place):
    changed_run(place)
    assert place.call("store", "fsck").strip().endswith("good")


def test_fsck_names_what_is_damaged_and_repair_makes_room_for_the_next_run(place):
    place.run()
    shown = json.loads(place.call("show", "toy-1/two"))
    spoil(Path(shown["folder"]))
    out = place.call("store", "fsck", code=5)
    assert shown["id"][:12] in out and "number.txt is not the file that was published" in out
    assert "repaired" in place.call("store", "fsck", "--repair")
    assert list((place.folder / ".stillhouse/quarantine").glob(f"{shown['id']}.*/number.txt"))
    place.run()
    assert json.loads(place.call("show", "toy-2/two"))["id"] == shown["id"]
    assert place.call("store", "fsck").strip().endswith("good")


@pytest.mark.parametrize("what", ["refs/cache/*.json", "keys/*.json", "refs/runs/toy-1/journal.jsonl", "store.json"])
def test_fsck_sees_and_repairs_damaged_records(place, what):
    place.run()
    file = sorted(store_of(place).root.glob(what))[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if what != "store.json" else 0] ^= 4
    file.write_bytes(data)
    assert str(file.relative_to(store_of(place).root)) in place.call("store", "fsck", code=5)
    place.call("store", "fsck", "--repair")
    assert place.call("store", "fsck").strip().endswith("good")
    place.run()


def test_the_parts_of_fsck_together_see_everything_once(place):
    changed_run(place)
    for folder in store_of(place).root.glob("objects/sha256/*/*"):
        for file in folder.glob("number.txt"):
            spoil(folder, text=file.read_text() + "x")
    found = [
        line
        for n in (1, 2, 3)
        for line in place.call("store", "fsck", "--subset", f"{n}/3", code=None).splitlines()
        if "is not the" in line
    ]
    whole = [line for line in place.call("store", "fsck", code=5).splitlines() if "is not the" in line]
    assert sorted(found) == sorted(whole) and len(whole) > 3


def test_size_counts_artifacts_by_kind(place):
    place.run()
    out = {line.split()[0]: line.split()[1] for line in place.call("store", "size").splitlines()}
    assert out["Checkpoint"] == "2" and out["Dataset"] == "2" and out["Verdict"] == "1" and "free" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["store", "fsk"], "did you mean 'fsck'?"),
        (["store"], "COMMAND"),
        (["store", "fsck", "--subset", "4/3"], "n from 1 to t"),
        (["store", "gc", "--keep", "-1"], "from 0 on"),
        (["store", "pin", "toy-1/summ"], "did you mean 'sum'?"),
        (["store", "size", "--store", "nowhere"], "no store at"),
    ],
)
def test_a_mistyped_store_command_is_told_what_was_meant(place, arguments, words):
    place.run()
    out = place.call(*arguments, code=2)
    assert words in out and len(out.splitlines()) < 6


def test_a_read_only_store_serves_what_it_has_and_says_what_it_lacks(place):
    place.run()
    root = store_of(place).root
    root.chmod(0o555)
    listing = sorted(str(p) for p in root.rglob("*"))
    shutil.rmtree(place.folder / "runs")
    assert "every stage kept" in place.run() and (place.folder / "runs/toy-1/page.html").exists()
    place.edit("value: 2}", "value: 5}")
    assert "is read-only and lacks two" in place.run(code=5)
    assert "read-only" in place.call("store", "gc", code=5)
    assert sorted(str(p) for p in root.rglob("*")) == listing
    root.chmod(0o700)


def test_no_wait_gives_up_and_names_who_is_at_work(place):
    place.edit("steps: 3", "steps: 400")
    process = place.start("run", place.recipe, "--profile", "none")
    wait_for(process, "counting")
    assert "toy-1 (process" in place.run("--no-wait", code=8)
    process.kill()
    process.wait()
