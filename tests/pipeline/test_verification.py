"""Each look at what is read or published, by itself: one test for every check that nothing else would miss."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import limits
from pipeline.errors import BadStore
from pipeline.keys import canonical, digest
from pipeline.manifest import Damaged
from pipeline.store import Store
from tests.pipeline.toy_place import Place

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store").prepare()


def put(store, key="k" * 64, **files):
    with store.workplace(key) as folder:
        for name, data in (files or {"a": b"one", "empty": b""}).items():
            (folder / name).write_bytes(data)
        return store.publish(key, {"image": 1}, folder, "Dataset", {}, {})


def opened(store, id):
    """The folder of an artifact, made writable."""
    folder = store.folder(id)
    for path in (folder, *folder.iterdir()):
        os.chmod(path, 0o755)
    return folder


def refused(store, id):
    with pytest.raises(Damaged) as caught:
        Store(store.root).verify(id)
    return caught.value.what


def test_a_manifest_in_another_spelling_is_damaged_although_it_says_the_same(store):
    id = put(store)
    file = opened(store, id) / "MANIFEST.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()), indent=1))
    assert "does not match" in refused(store, id)


def test_a_manifest_that_is_no_json_is_damaged(store):
    id = put(store)
    (opened(store, id) / "MANIFEST.json").write_bytes(b"{")
    assert "does not match" in refused(store, id)


def test_an_artifact_under_the_name_of_another_is_damaged(store):
    one, two = put(store), put(store, "l" * 64, a=b"two")
    shutil.rmtree(opened(store, one))
    shutil.copytree(store.folder(two), store.folder(one))
    assert "does not match" in refused(store, one)


def test_an_artifact_of_a_newer_version_is_named_and_not_read(store):
    id = put(store)
    manifest = {**store.manifest(id), "schema": 2}
    newer = store.folder(digest(manifest))
    newer.parent.mkdir(exist_ok=True)
    shutil.copytree(store.folder(id), newer)
    (opened(store, newer.name) / "MANIFEST.json").write_bytes(canonical(manifest))
    with pytest.raises(BadStore, match="has schema 2"):
        store.manifest(newer.name)


def test_a_link_to_the_same_bytes_is_damage(store, tmp_path):
    id = put(store)
    (tmp_path / "copy").write_bytes(b"one")
    (opened(store, id) / "a").unlink()
    (store.folder(id) / "a").symlink_to(tmp_path / "copy")
    assert refused(store, id).startswith("a: ")


@pytest.mark.parametrize("name", ["a", "empty"])
def test_nobody_waits_for_a_pipe_in_place_of_a_file(store, name):
    id = put(store)
    pipe = opened(store, id) / name
    pipe.unlink()
    os.mkfifo(pipe)
    code = f"from pathlib import Path; from pipeline.store import Store; Store(Path({str(store.root)!r})).verify({id!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=10)
    assert f"{name}: not a regular file" in done.stderr.lower()


def test_a_file_of_the_right_bytes_under_another_name_is_damage(store):
    id = put(store)
    (opened(store, id) / "a").rename(store.folder(id) / "b")
    assert "['a', 'b']" in refused(store, id)


@pytest.mark.parametrize("what", ["link", "folder", "pipe"])
def test_only_plain_files_are_published(store, tmp_path, what):
    (tmp_path / "target").write_bytes(b"outside")
    with pytest.raises(BadStore, match="plain files"), store.workplace("k" * 64) as folder:
        if what == "link":
            (folder / "a").symlink_to(tmp_path / "target")
        elif what == "folder":
            (folder / "a").mkdir()
        else:
            os.mkfifo(folder / "a")
        store.publish("k" * 64, {}, folder, "Dataset", {}, {})
    assert store.find("k" * 64) is None


def test_a_damaged_ref_gives_nothing_and_not_something_else(store):
    one = put(store)
    put(store, "l" * 64, a=b"two")
    ref = store.root / f"refs/cache/{'l' * 64}.json"
    ref.write_bytes(ref.read_bytes().replace(store.id_of("l" * 64).encode(), one.encode()))
    assert store.find("l" * 64) is None and store.find("k" * 64).id == one


def test_a_ref_under_the_name_of_another_key_gives_nothing(store):
    put(store)
    shutil.copy(store.root / f"refs/cache/{'k' * 64}.json", store.root / f"refs/cache/{'l' * 64}.json")
    assert store.find("l" * 64) is None and store.id_of("l" * 64) is None


def test_each_byte_of_the_mark_of_a_store_counts(store):
    file = store.root / "store.json"
    good = file.read_bytes()
    for at in range(len(good)):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(BadStore):
            Store(store.root).prepare()
    file.write_bytes(good)
    Store(store.root).prepare()


def test_a_link_in_place_of_an_artifact_is_damage(store, tmp_path):
    id = put(store)
    opened(store, id).rename(tmp_path / "elsewhere")
    store.folder(id).symlink_to(tmp_path / "elsewhere")
    assert "link" in refused(store, id)


def test_what_was_verified_before_is_verified_again_when_it_is_published_once_more(store):
    id = put(store)
    (opened(store, id) / "a").write_bytes(b"onf")
    assert put(store, "l" * 64) == id
    Store(store.root).verify(id)


@pytest.fixture
def ran(tmp_path):
    """A toy run, of which one artifact was changed afterwards."""
    place = Place(tmp_path)
    place.run()
    folder = Path(json.loads(place.call("show", "toy-1/sum"))["folder"])
    os.chmod(folder / "number.txt", 0o644)
    (folder / "number.txt").write_text("4.0")
    return place


def test_a_read_only_store_is_verified_before_it_is_used(ran):
    root = ran.folder / ".stillhouse"
    root.chmod(0o555)
    try:
        said = ran.run(code=5)
    finally:
        root.chmod(0o700)
    assert "sum: artifact" in said and "the store is read-only" in said


def test_a_damaged_artifact_gets_into_no_page_and_no_bundle(ran):
    page = ran.folder / "runs/toy-1/page.html"
    page.unlink()
    assert "number.txt is not the file that was published; moved to" in ran.call("report", "toy-1", code=5)
    assert not page.exists()


def test_the_process_of_a_stage_ends_when_its_runner_was_gone_before_it_began():
    code = "import os; from pipeline import limits; limits.die_with(os.getppid() + 1); print('lives')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")


def test_the_process_of_a_stage_goes_on_while_its_runner_lives():
    code = f"from pipeline import limits; limits.die_with({os.getpid()}); print('lives')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "lives\n")
    assert limits.memory_kills() >= 0


def test_the_process_of_a_stage_is_killed_with_its_runner_although_it_says_nothing():
    stage = "import os, time; from pipeline import limits; limits.die_with(os.getppid()); print(os.getpid(), flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {stage!r}])"
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pid = int(runner.stdout.readline())
    try:
        assert lives(pid)
        runner.kill()
        runner.wait()
        deadline = time.monotonic() + 10
        while lives(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not lives(pid)
    finally:
        runner.stdout.close()
        if lives(pid):
            os.kill(pid, signal.SIGKILL)


def lives(pid):
    """A process that ended and that nobody has waited for has no command line any more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False
