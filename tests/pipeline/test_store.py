import errno
import os
import shutil
import threading
from types import SimpleNamespace

import pytest

from pipeline import cli, exchange, fsck, fsops, locks
from pipeline.artifact import Artifact
from pipeline.errors import BadRecipe, BadStore
from pipeline.fsck import examine
from pipeline.gc import sweep
from pipeline.keys import canonical
from pipeline.manifest import Damaged
from pipeline.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store").prepare()


def put(store, key="k" * 64, files=None, facts=None, beside=None):
    with store.workplace(key) as folder:
        for name, data in (files or {"a.bin": b"one", "b.bin": b"two"}).items():
            (folder / name).write_bytes(data)
        return store.publish(key, {"image": 1}, folder, "Dataset", facts or {"n": 1}, beside or {"at": "now"})


def test_what_was_published_is_found_again_with_its_facts_and_what_lies_beside(store):
    id = put(store)
    found = Store(store.root).find("k" * 64, "data")
    assert (found.id, found.name, found.kind, found.facts, found.beside) == (id, "data", "Dataset", {"n": 1}, {"at": "now"})
    assert found.file("b.bin").read_bytes() == b"two"
    assert store.pre_image("k" * 64) == {"image": 1}


def test_the_id_depends_on_content_and_facts_alone(store):
    assert put(store, "a" * 64, beside={"at": "noon"}) == put(store, "b" * 64, beside={"at": "midnight"})
    assert put(store, "c" * 64, facts={"n": 2}) != put(store, "a" * 64)


def test_published_files_are_read_only(store):
    folder = store.folder(put(store))
    assert {oct(p.stat().st_mode & 0o777) for p in folder.iterdir()} == {"0o444"} and oct(folder.stat().st_mode & 0o777) == "0o555"


def test_nothing_half_written_is_visible(store):
    with pytest.raises(RuntimeError), store.workplace("k" * 64) as folder:
        (folder / "a.bin").write_bytes(b"half")
        raise RuntimeError
    assert store.find("k" * 64) is None and not list((store.root / "tmp").iterdir())


def damage(store, id, how):
    folder = store.folder(id)
    os.chmod(folder, 0o755)
    file = folder / "a.bin"
    os.chmod(file, 0o644)
    if how == "flip":
        file.write_bytes(b"onf")
    elif how == "truncate":
        file.write_bytes(b"")
    elif how == "delete":
        file.unlink()
    elif how == "add":
        (folder / "c.bin").write_bytes(b"")
    elif how == "swap":
        data = (folder / "b.bin").read_bytes()
        os.chmod(folder / "b.bin", 0o644)
        (folder / "b.bin").write_bytes(file.read_bytes())
        file.write_bytes(data)
    elif how == "link":
        file.unlink()
        file.symlink_to(folder / "b.bin")


@pytest.mark.parametrize("how", ["flip", "truncate", "delete", "add", "swap", "link"])
def test_every_damage_is_seen_and_put_into_quarantine(store, how):
    id = put(store)
    damage(store, id, how)
    fresh = Store(store.root)
    with pytest.raises(Damaged) as caught:
        fresh.verify(id)
    place = fresh.quarantine(caught.value)
    assert place.exists() and fresh.find("k" * 64) is None
    assert put(fresh) == id
    Store(store.root).verify(id)


def test_each_byte_of_the_manifest_counts(store):
    id = put(store)
    file = store.folder(id) / "MANIFEST.json"
    good = file.read_bytes()
    os.chmod(file, 0o644)
    for at in range(len(good)):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert store.find("k" * 64) is None
    file.write_bytes(good)
    assert store.find("k" * 64).id == id


def test_publishing_over_a_damaged_copy_repairs_it(store):
    id = put(store)
    damage(store, id, "flip")
    fresh = Store(store.root)
    assert put(fresh, "b" * 64) == id
    Store(store.root).verify(id)
    assert len([p for p in (store.root / "quarantine").glob(f"{id}.*") if p.is_dir()]) == 1


@pytest.mark.parametrize("name", ["with space", "a" * 129, "ü"])
def test_a_file_name_that_could_surprise_is_not_published(store, name):
    with pytest.raises(BadStore, match="plain files"):
        put(store, files={name: b""})
    assert store.find("k" * 64) is None


def test_a_folder_of_something_else_is_not_taken_for_a_store(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BadStore, match="not a store"):
        Store(tmp_path).prepare()


def test_a_store_of_a_newer_version_is_refused(store):
    (store.root / "store.json").write_bytes(canonical({"schema": 2, "hash": "sha256"}))
    with pytest.raises(BadStore, match="schema 2"):
        Store(store.root).prepare()


def test_an_artifact_is_named_by_the_start_of_its_id(store):
    id = put(store)
    assert store.complete(id[:6]) == id
    with pytest.raises(BadRecipe, match="names 0"):
        store.complete("ffff")
    with pytest.raises(BadRecipe):
        store.complete("../..")


def test_runs_are_numbered_per_recipe(store):
    assert [store.new_run(n) for n in ("a", "a", "a-1", "a")] == ["a-1", "a-2", "a-1-1", "a-3"]
    assert store.runs("a") == ["a-1", "a-2", "a-3"] and store.runs("a-1") == ["a-1-1"]


def test_a_run_that_is_swept_while_others_count_is_none(store, monkeypatch):
    """Between looking for its journal and reading it."""
    journal = store.journal("gone-1")
    monkeypatch.setattr(type(journal.path), "exists", lambda path: True)
    assert journal.read() == journal.lines() == [] and journal.damaged() == "" and store.sequence("gone-1") == 0


def test_a_torn_or_damaged_line_of_a_journal_is_ignored(store):
    journal = store.journal(store.new_run("a"))
    for event in ("begin", "stage", "end"):
        journal.write(event, n=1)
    data = journal.path.read_bytes()
    journal.path.write_bytes(data[:-9])
    assert [e["event"] for e in journal.read()] == ["begin", "stage"]
    journal.write("end", n=2)
    assert [e["event"] for e in journal.read()] == ["begin", "stage", "end"]
    journal.path.write_bytes(data.replace(b'"stage"', b'"staga"'))
    assert [e["event"] for e in journal.read()] == ["begin", "end"]


def test_replace_leaves_the_old_bytes_when_writing_fails(tmp_path, monkeypatch):
    file = tmp_path / "ref.json"
    fsops.replace(file, b"old")
    monkeypatch.setattr(fsops.os, "rename", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        fsops.replace(file, b"new")
    assert file.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["ref.json"]


@pytest.mark.parametrize("name", ["a.bin", "MANIFEST.json"])
def test_a_file_that_the_system_only_refuses_to_open_is_not_taken_for_damage(store, monkeypatch, name):
    id, fresh, opening = put(store), Store(store.root), os.open

    def refused(path, *more):
        if str(path).endswith(name):
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return opening(path, *more)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(OSError, match="Too many open files"):
        fresh.verify(id)
    if name == "MANIFEST.json":
        with pytest.raises(OSError, match="Too many open files"):
            fresh.find("k" * 64)


def test_the_number_of_a_swept_run_is_not_given_again(store):
    run = store.new_run("toy")
    with locks.alone(store.alone(run), run, None):
        store.note(run, "begin", sequence=1)
    assert sweep(store, keep=0).runs == ["toy-1"]
    assert store.runs() == [] and store.new_run("toy") == "toy-2"


def test_a_folder_that_is_no_run_is_none(store):
    (store.root / "refs/runs/backup").mkdir()
    assert store.new_run("toy") == "toy-1" and store.runs() == ["toy-1"]


def test_a_line_that_did_not_fit_on_the_disk_leaves_nothing_behind(store, monkeypatch):
    run, writing, calls = store.new_run("toy"), os.write, []
    store.note(run, "begin", sequence=1)

    def full(fd, data):
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return writing(fd, bytes(data[:10]) if len(calls) == 1 else data)

    monkeypatch.setattr(os, "write", full)
    store.note(run, "end", code=5)
    assert [line[9:24] for line in store.journal(run).lines()] == [b'{"event":"begin', b'{"event":"end",']
    assert not (store.root / "ballast").exists()


def test_sweeping_waits_for_a_pull(store, tmp_path, monkeypatch):
    id, other = put(store), Store(tmp_path / "other").prepare()
    exchange._push(store, id, tmp_path / "shared")
    copying, sweeps = shutil.copyfile, []

    def slowly(source, target):
        copying(source, target)
        sweeps.append(threading.Thread(target=sweep, args=(other,)))
        sweeps[-1].start()
        sweeps[-1].join(0.2)

    monkeypatch.setattr(shutil, "copyfile", slowly)
    exchange._pull(other, id, tmp_path / "shared")
    for thread in sweeps:
        thread.join()
    other.verify(id)


def test_what_lies_among_the_artifacts_and_is_none_is_put_aside_once(store):
    (store.root / "objects/sha256/zz/junk").mkdir(parents=True)
    [found] = examine(store, repair=True)
    assert (found.where, found.what, found.repaired) == ("objects/sha256/zz/junk", "is no artifact", True)
    assert [p.name for p in (store.root / "quarantine").iterdir()] == ["objects-sha256-zz-junk.1"]
    assert not list(examine(store))


def said(store, capsys, *words):
    """The exit code of a command on this store, and all that it printed."""
    parts = cli.Parts({}, lambda: True, dict, lambda run, artifacts: ("", {}))
    code = cli.main([*words, "--store", str(store.root)], parts)
    return code, "".join(capsys.readouterr())


@pytest.mark.parametrize("command", [("show",), ("store", "pin")])
def test_every_command_tells_of_damage_in_a_sentence(store, capsys, command):
    id = put(store)
    os.chmod(store.folder(id) / "MANIFEST.json", 0o644)
    (store.folder(id) / "MANIFEST.json").write_text("{}")
    code, text = said(store, capsys, *command, id)
    assert code == 5 and text.endswith("MANIFEST.json does not match the artifact's id: run its recipe again, it will be made anew\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("show", "toy-1"), "toy-1 is a run: name one of its stages, toy-1/STAGE"),
        (("show", "zz"), "'zz' names 0 artifacts"),
        (("show", "/tmp/zz"), "'/tmp/zz' names 0 artifacts"),
        (("store", "push", "out", "x.json"), "x.json does not exist: name a committed baseline's file"),
        (("check", "r.yaml", "--profile", "cpu"), "--profile is for run, sweep, plan, why"),
        (("gate", "--profle"), "unrecognized arguments: --profle; did you mean --profile?"),
    ],
)
def test_a_mistyped_name_is_exit_2_and_says_what_is_meant(store, capsys, words, told):
    store.note(store.new_run("toy"), "begin", sequence=1)
    code, text = said(store, capsys, *words)
    assert code == 2 and told in text


def test_a_store_without_runs_says_so(store, capsys):
    code, text = said(store, capsys, "ls")
    assert code == 0 and text == f"no run in {store.root} yet: python -m pipeline run RECIPE\n"


def test_what_is_swept_while_fsck_looks_is_no_damage(store):
    put(store)
    (store.root / "objects/sha256/00/junk").mkdir(parents=True)
    findings = examine(store)
    assert next(findings).where == "objects/sha256/00/junk"
    sweep(store)
    assert list(findings) == []


def test_a_repair_leaves_the_journal_of_a_run_at_work_alone(store):
    run = store.new_run("toy")
    store.journal(run).path.write_bytes(b"torn\n")
    with locks.alone(store.alone(run), run, None):
        assert list(examine(store, repair=True)) == [] and store.journal(run).lines() == [b"torn"]
    assert [f.what for f in examine(store, repair=True)] == ["entries that cannot be read: 1 of 1"]


def test_a_repair_looks_at_records_while_nobody_publishes(store, monkeypatch):
    (store.root / "keys" / f"{'a' * 64}.json").write_text("{}")
    alone, looked = [], fsck._wrong
    monkeypatch.setattr(fsck, "_wrong", lambda *more: alone.append(locks.is_free(store.root / "locks/store.lock")) or looked(*more))
    assert len(list(examine(store, repair=True))) == 1 and alone == [False]


def test_a_bundle_that_was_moved_away_is_copied_again(store, tmp_path, monkeypatch, capsys):
    [run], written = [store.new_run("toy")], []
    monkeypatch.setattr("pipeline.report.write", lambda *more: written.append(more[1]))
    bundle = Artifact("pack", "Bundle", "f" * 64, tmp_path)
    outcome = SimpleNamespace(run=run, steps=[SimpleNamespace(name="pack", artifact=bundle)], changed=False, error=None)
    (tmp_path / "runs" / run / "pack").mkdir(parents=True)
    (tmp_path / "runs" / run / "page.html").touch()
    store.note(run, "begin", sequence=1)
    cli._leave(outcome, store, tmp_path / "runs", None)
    assert written == []
    (tmp_path / "runs" / run / "pack").rmdir()
    cli._leave(outcome, store, tmp_path / "runs", None)
    assert written == [run]


def test_the_state_of_a_stage_that_makes_a_damaged_artifact_anew_is_not_swept(store):
    key, run = "k" * 64, store.new_run("toy")
    store.note(run, "begin", sequence=1)
    store.note(run, "starts", stage="one", key=key)
    store.quarantine(Damaged(put(store, key), "rot"))
    (store.state(key) / "half").touch()
    sweep(store)
    assert (store.root / "state" / key / "half").exists()
    put(store, key)
    sweep(store)
    assert not (store.root / "state" / key).exists()


def test_of_two_pushes_at_once_the_second_finds_the_work_done(store, tmp_path, monkeypatch):
    id, shared = put(store), tmp_path / "shared"
    looking = exchange.examined

    def overtaken(folder, *more):
        if not (shared / id).exists():
            shutil.copytree(folder, shared / id)
        return looking(folder, *more)

    monkeypatch.setattr(exchange, "examined", overtaken)
    exchange._push(store, id, shared)
    assert [p.name for p in shared.iterdir()] == [id]
