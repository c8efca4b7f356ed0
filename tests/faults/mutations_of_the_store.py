"""Mutations of what reaches the disk and of what is read back: syncs, renames, looks at what is stored."""

from mutation import LOOKS, POWER, RUNNER, SECRETS, STATE, STORE, UPKEEP, M

FSOPS, STORING, MANIFEST, STATES = "pipeline/fsops.py", "pipeline/store.py", "pipeline/manifest.py", "stages/state.py"
JOURNAL, FSCK, SWEEP, PINS, RUNS = "pipeline/journal.py", "pipeline/fsck.py", "pipeline/gc.py", "pipeline/pins.py", "pipeline/runner.py"
IN_PLACE = "Path.write_bytes("
COPYING = '__import__("shutil").copytree('
WRITTEN = "_write_all(fd, data)\n        os.fsync(fd)"
UNSYNCED = "_write_all(fd, data)"
NEW_FILE = "os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)\n    try:\n        "
MORE = "os.ftruncate(fd, before)\n            raise\n        "
READING = "os.O_RDONLY | os.O_NOFOLLOW)\n    try:\n        "
FOLDER = "os.O_RDONLY | os.O_DIRECTORY)\n    try:\n        "

SYNCS = [
    M("a new file is not synced", FSOPS, NEW_FILE + WRITTEN, NEW_FILE + UNSYNCED, POWER, quick=True),
    M("what is appended is not synced", FSOPS, MORE + "os.fsync(fd)", MORE + "pass", POWER),
    M("the name of a file that grows is not synced", FSOPS, "if new:\n        sync_folder(path.parent)", "if new:\n        pass", POWER),
    M("syncing a file does nothing", FSOPS, READING + "os.fsync(fd)", READING + "pass", POWER),
    M("syncing a folder does nothing", FSOPS, FOLDER + "os.fsync(fd)", FOLDER + "pass", POWER),
    M("a replaced name is not synced", FSOPS, "        raise\n    sync_folder(path.parent)", "        raise", POWER),
    M("the name of a new folder is not synced", FSOPS, "        return\n    sync_folder(path.parent)", "        return", POWER),
    M("the name of a moved folder is not synced", FSOPS, "    sync_folder(target.parent)\n    return moved", "    return moved", POWER),
    M("files of an artifact are not synced", STORING, "        fsops.sync_file(file)\n", "        pass\n", POWER),
    M("names of files of an artifact are not synced", STORING, "(folder)\n    fsops.sync_folder(folder)", "(folder)", POWER),
    M("a new run is not synced", STORING, '                fsops.sync_folder(self.root / "refs/runs")\n', "", POWER),
    M("folders that a killed process made are not synced", STORING, "            fsops.sync_folder(parent)\n", "            pass\n", POWER),
    M(
        "a shelf that a killed process made is not synced",
        STORING,
        "        fsops.sync_folder(target.parent.parent)",
        "        pass",
        POWER,
    ),
    M("trash is not synced before it is emptied", SWEEP, '    fsops.sync_folder(store.root / "trash")', "    pass", POWER),
    M("tensors of a training state are not synced", STATES, "    fsops.sync_file(fresh / TENSORS)\n", "", POWER),
    M("names in a training state are not synced", STATES, "    fsops.sync_folder(fresh)\n", "", POWER),
]

RENAMES = [
    M("a file is replaced in place", FSOPS, "os.rename(fresh, path)", "path.write_bytes(data)", POWER),
    M("a folder is copied, not moved", FSOPS, "os.rename(source, target)", COPYING + "source, target)", POWER),
    M(
        "an artifact is copied to its name",
        STORING,
        "if fsops.rename_folder(folder, target):",
        f"if not target.exists() and {COPYING}folder, target):",
        POWER,
    ),
    M(
        "what is damaged is copied to quarantine",
        STORING,
        "fsops.rename_folder(folder, place)",
        COPYING + "folder, place)",
        STORE + "::test_every_damage_is_seen_and_put_into_quarantine",
    ),
    M(
        "a store's mark is written in place",
        STORING,
        'fsops.replace(self.root / "store.json"',
        f'{IN_PLACE}self.root / "store.json"',
        POWER,
    ),
    M("pre-images are written in place", STORING, 'fsops.replace(self.root / "keys"', f'{IN_PLACE}self.root / "keys"', POWER),
    M("refs are written in place", STORING, 'fsops.replace(self.root / "refs/cache"', f'{IN_PLACE}self.root / "refs/cache"', POWER),
    M("pins are written in place", PINS, "fsops.replace(_file(", f"{IN_PLACE}_file(", POWER),
    M("a store's mark is mended in place", FSCK, "fsops.replace(file, canonical(", f"{IN_PLACE}file, canonical(", POWER),
    M("a journal is mended in place", FSCK, 'fsops.replace(file, b"".join(', f'{IN_PLACE}file, b"".join(', POWER),
    M(
        "damaged records are copied aside",
        FSCK,
        "file.rename(target)",
        "target.write_bytes(file.read_bytes())",
        UPKEEP + "::test_fsck_sees_and_repairs_damaged_records",
    ),
    M(
        "what is swept is copied",
        SWEEP,
        "path.rename(place)",
        f'__import__("shutil").copy(path, place) if path.is_file() else {COPYING}path, place)',
        UPKEEP + "::test_gc_keep_1_frees_what_only_older_runs_needed",
    ),
    M("a training state is copied to its name", STATES, "fsops.rename_folder(fresh, final)", COPYING + "fresh, final)", POWER),
    M(
        "a log is not scrubbed",
        "pipeline/secrets.py",
        "        fsops.replace(path, clean",
        "        (path, clean",
        SECRETS + "::test_a_log_is_scrubbed_with_all_else_left_as_it_was",
    ),
]

STORED = [
    M(
        "a manifest need not hash to its id",
        MANIFEST,
        "if hashlib.sha256(data).hexdigest() != id:",
        "if False:",
        STORE + "::test_each_byte_of_the_manifest_counts",
    ),
    M(
        "a manifest may be spelt in any way",
        MANIFEST,
        "hashlib.sha256(data).hexdigest() != id",
        "digest(json.loads(data)) != id",
        LOOKS + "::test_a_manifest_in_another_spelling_is_damaged_although_it_says_the_same",
    ),
    M(
        "a newer manifest is read",
        MANIFEST,
        'if manifest["schema"] > SCHEMA:',
        "if False:",
        LOOKS + "::test_an_artifact_of_a_newer_version_is_named_and_not_read",
    ),
    M(
        "files may be added and missing",
        MANIFEST,
        'if names != set(manifest["files"]):',
        "if False:",
        STORE + "::test_every_damage_is_seen_and_put_into_quarantine",
    ),
    M(
        "files are not compared with the manifest",
        MANIFEST,
        'if found != (expected["size"], expected["sha256"]):',
        "if False:",
        STORE + "::test_every_damage_is_seen_and_put_into_quarantine",
        quick=True,
    ),
    M(
        "only sizes are compared",
        MANIFEST,
        'found != (expected["size"], expected["sha256"])',
        'found[0] != expected["size"]',
        STORE + "::test_every_damage_is_seen_and_put_into_quarantine",
    ),
    M(
        "links are followed",
        FSOPS,
        "os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK",
        "os.O_RDONLY | os.O_NONBLOCK",
        LOOKS + "::test_a_link_to_the_same_bytes_is_damage",
    ),
    M(
        "reading waits for whoever writes into a pipe",
        FSOPS,
        "os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK",
        "os.O_RDONLY | os.O_NOFOLLOW",
        LOOKS + "::test_nobody_waits_for_a_pipe_in_place_of_a_file",
    ),
    M(
        "pipes are read",
        FSOPS,
        "if not stat.S_ISREG(os.fstat(fd).st_mode):",
        "if False:",
        LOOKS + "::test_nobody_waits_for_a_pipe_in_place_of_a_file",
    ),
    M(
        "the same artifact once more is taken for sound",
        STORING,
        "            self._verified.discard(id)\n            self.verify(id)",
        "            self._verified.discard(id)",
        STORE + "::test_publishing_over_a_damaged_copy_repairs_it",
    ),
    M(
        "what was sound once is sound for ever",
        STORING,
        "            self._verified.discard(id)\n            self.verify(id)",
        "            self.verify(id)",
        LOOKS + "::test_what_was_verified_before_is_verified_again_when_it_is_published_once_more",
    ),
    M(
        "inputs of a stage are not verified",
        RUNS,
        "self.store.verify(made[name].id)",
        "pass",
        RUNNER + "::test_a_damaged_input_is_set_aside_and_made_anew",
    ),
    M(
        "a read-only store is not verified",
        RUNS,
        "self.store.verify(step.artifact.id)",
        "pass",
        LOOKS + "::test_a_read_only_store_is_verified_before_it_is_used",
    ),
    M(
        "what goes into the page is not verified",
        "pipeline/report.py",
        "store.verify(artifact.id)",
        "pass",
        LOOKS + "::test_a_damaged_artifact_gets_into_no_page_and_no_bundle",
    ),
    M(
        "fsck does not read artifacts",
        FSCK,
        "fresh.verify(folder.name)",
        "pass",
        UPKEEP + "::test_fsck_names_what_is_damaged_and_repair_makes_room_for_the_next_run",
    ),
    M(
        "sealed records are not compared with their digest",
        "pipeline/keys.py",
        'record["content"] if seal(record["content"]) == data else None',
        'record["content"]',
        LOOKS + "::test_a_damaged_ref_gives_nothing_and_not_something_else",
        quick=True,
    ),
    M(
        "lines of a journal need no checksum",
        JOURNAL,
        'if check == b"%08x" % zlib.crc32(body) else None',
        "if check else None",
        STORE + "::test_a_torn_or_damaged_line_of_a_journal_is_ignored",
        quick=True,
    ),
    M(
        "a newer store is used",
        STORING,
        "if found != SCHEMA:",
        "if False:",
        STORE + "::test_a_store_of_a_newer_version_is_refused",
    ),
    M(
        "a store's mark may be damaged",
        STORING,
        'number if number > SCHEMA or data == canonical({"schema": number, "hash": "sha256"}) else None',
        "number",
        LOOKS + "::test_each_byte_of_the_mark_of_a_store_counts",
    ),
    M(
        "a ref may stand for any key, in a plan and in a sweep",
        STORING,
        ' if ref and ref["key"] == key else None',
        " if ref else None",
        LOOKS + "::test_a_ref_under_the_name_of_another_key_gives_nothing",
    ),
    M(
        "the folder of an artifact may be a link",
        MANIFEST,
        "        if folder.is_symlink():\n            raise Damaged(",
        "        if False:\n            raise Damaged(",
        LOOKS + "::test_a_link_in_place_of_an_artifact_is_damage",
    ),
    M(
        "any folder is a store",
        STORING,
        'if not (self.root / "store.json").exists() and self._strangers():',
        "if False:",
        STORE + "::test_a_folder_of_something_else_is_not_taken_for_a_store",
    ),
    M(
        "a damaged pin is passed over",
        PINS,
        "        if record is None:\n            raise",
        "        if record is None:\n            continue\n            raise",
        UPKEEP + "::test_a_damaged_pin_stops_gc_rather_than_losing_what_it_kept",
    ),
    M(
        "pins keep nothing",
        SWEEP,
        "ids |= {id for pinned_ids in pins.values() for id in pinned_ids}",
        "pass",
        UPKEEP + "::test_what_is_pinned_stays",
    ),
    M(
        "facts of a training state are not compared",
        STATES,
        'if _digest(content) != digests["content"]:',
        "if False:",
        STATE + "::test_a_flipped_bit_of_the_facts_is_found_or_changes_nothing",
    ),
    M(
        "tensors of a training state are not compared",
        STATES,
        "if fsops.sha256(path / TENSORS)[1] != digests[TENSORS]:",
        "if False:",
        STATE + "::test_a_damaged_newest_state_falls_back_to_the_one_before_and_says_so",
    ),
]

SPEC = "fsops.replace(spec_file, json.dumps(secrets.redacted(spec, self._secrets)).encode())"
# Calls that are not mutated: (file, line as it stands there) -> why it cannot matter.
COPY = "a copy outside the store: `pull` compares every byte of it, and `push` makes it anew"
CALLED = "it calls the look in `verify` above it, which is among the mutations"
GATING, EXCHANGE = "pipeline/gating.py", "pipeline/exchange.py"

TABLE = "the figures of a sweep are read from the store, and the same command writes them anew"
EXEMPT = {
    (EXCHANGE, "store.verify(id)"): "what was copied is compared with its id again, before it gets its name",
    (EXCHANGE, "if not fsops.rename_folder(fresh, target):"): COPY,
    (EXCHANGE, "fsops.sync_file(fresh / file.name)"): COPY,
    (GATING, "verify(store, artifact)"): CALLED,
    (GATING, "verify(store, run.artifacts[gate])"): CALLED,
    (GATING, 'verify(store, Artifact(id[:12], "", id, store.folder(id)))'): CALLED,
    (
        GATING,
        'fsops.replace(file, (json.dumps(content, indent=1) + "\\n").encode())',
    ): "it is committed, and `gate --accept` writes it anew",
    (FSCK, "fsops.sync_folder(target.parent)"): "a damaged record that comes back after a power cut is found damaged again",
    (RUNS, SPEC): "it is written for people; the child is told in full by other means",
    ("pipeline/fleet.py", 'fsops.replace(self.folder / "results.json", (json.dumps(content, indent=1) + "\\n").encode())'): TABLE,
    ("pipeline/fleet.py", 'fsops.replace(self.folder / "table.md", (text + "\\n").encode())'): TABLE,
    ("pipeline/report.py", "fresh.rename(target)"): "a bundle outside the store is a copy, and `report` makes it anew",
    ("pipeline/report.py", "fresh.replace(file)"): "a page is rendered from the store, and `report` makes it anew",
}
