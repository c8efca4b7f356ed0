"""Mutations of looks at what is published and at what comes from elsewhere, of locks, and of the fields of keys."""

from mutation import ENGINES, EXPORT, KEYS, LOOKS, ROOM, SAMPLES, SECRETS, SETBACKS, STORE, UPKEEP, WEIGHTS, M

STORING, HIDING, LOADING, ONNX = "pipeline/store.py", "pipeline/secrets.py", "stages/weights.py", "stages/onnxfile.py"
LOCKS, LIMITS, ROOMS, KEYING = "pipeline/locks.py", "pipeline/limits.py", "pipeline/room.py", "pipeline/keys.py"
PLAIN = LOOKS + "::test_only_plain_files_are_published"
SECRET = SECRETS + "::test_an_artifact_that_holds_a_secret_is_refused_with_its_name_and_never_its_value"
HOSTILE = EXPORT + "::test_hostile_files_are_refused_before_any_parser_sees_them"
LINKED = EXPORT + "::test_links_and_empty_files_are_refused_and_garbage_never_escapes"
OTHERS = ENGINES + "::test_an_onnx_file_that_reads_other_files_is_refused_before_the_runtime_sees_it"
GATES = "tests/pipeline/test_gating.py"
HELD = ROOM + "::test_many_hold_a_lock_shared_and_one_alone"

PUBLISHED = [
    M(
        "file names may hold anything",
        STORING,
        "if not FILE_NAME.fullmatch(file.name) or file",
        "if file",
        STORE + "::test_a_file_name_that_could_surprise_is_not_published",
    ),
    M(
        "samples that changed are judged",
        "pipeline/gating.py",
        "        store.verify(artifact.id)",
        "        pass",
        GATES + "::test_stored_samples_that_changed_are_never_replayed",
    ),
    M(
        "a baseline that changed is judged by",
        "pipeline/released.py",
        "                store.verify(id)",
        "                pass",
        GATES + "::test_a_baseline_whose_bytes_changed_is_undecided_and_moved_aside",
    ),
    M(
        "what changed in the store is compared",
        "pipeline/comparing.py",
        '                store.verify(entry["id"])',
        "                pass",
        "tests/pipeline/test_comparing.py::test_a_damaged_verdict_is_not_opened_and_stays_where_it_is",
    ),
    M("links are published", STORING, "file.is_symlink() or ", "", PLAIN),
    M("folders and pipes are published", STORING, " or not file.is_file():", ":", PLAIN),
    M("artifacts can be written to", STORING, "    fsops.freeze(folder)\n", "", STORE + "::test_published_files_are_read_only"),
    M(
        "weights that are not finite are published",
        LOADING,
        "    if bad:\n        raise Diverged(",
        "    if False:\n        raise Diverged(",
        WEIGHTS + "::test_weights_that_are_not_finite_are_not_published",
    ),
    M(
        "weights that are not finite are saved",
        "stages/pupil.py",
        "            if bad:\n",
        "            if False:\n",
        SETBACKS + "::test_weights_that_stay_not_finite_are_never_published",
    ),
    M("files are not searched for secrets", HIDING, "find(file, secrets) or _named", "_named", SECRET),
    M(
        "names of files are not searched for secrets",
        HIDING,
        "find(file, secrets) or _named(file.name, secrets)",
        "find(file, secrets)",
        SECRET,
    ),
    M("facts are not searched for secrets", HIDING, "_named(json.dumps(value), secrets)", "None", SECRET),
    M(
        "what stands across two chunks is not found",
        HIDING,
        "kept = window[-overlap:]",
        'kept = b""',
        SECRETS + "::test_a_value_is_found_wherever_it_lies_in_a_large_file",
    ),
]

RUNNING = "pipeline/runner.py"
LEARNT = [
    M("a skipped step leaves traces", "stages/guard.py", "        self._put_back(skipped, after)\n", "", "f13"),
    M("resuming forgets how often training went back", "stages/setbacks.py", 'KEPT = ("round", ', "KEPT = (", "f13"),
]
TOLD = [
    M(
        "secrets are published",
        RUNNING,
        '            secrets.require_none(folder, self._secrets, facts=result["facts"], beside=beside)\n',
        "",
        "f16",
    ),
    M("journals hold secrets", RUNNING, "**secrets.redacted(facts, self._secrets)", "**facts", "f16"),
    M("pre-images hold secrets", RUNNING, "image = secrets.redacted(step.image, self._secrets)", "image = step.image", "f16"),
    M("logs hold secrets", RUNNING, "secrets.scrub(log, self._secrets)", "pass", "f16"),
    M("a stage says secrets", RUNNING, 'secrets.redact(event["say"], self._secrets)', 'event["say"]', "f16"),
]

FROM_ELSEWHERE = [
    M(
        "pictures are not compared with their index",
        "stages/samples.py",
        'if hashlib.sha256(data).hexdigest() != self.entries[i][f"{kind}_sha256"]:',
        "if False:",
        SAMPLES + "::test_a_file_that_changed_since_is_named",
    ),
    M(
        "anything is opened as safetensors",
        LOADING,
        "        require_safetensors(file)\n",
        "        pass\n",
        WEIGHTS + "::test_a_pickle_is_refused_unopened_with_the_command_that_converts_it",
    ),
    M(
        "an index of weights may lead anywhere",
        LOADING,
        'if name in ("", ".", "..") or "/" in name',
        "if False and name",
        WEIGHTS + "::test_an_index_may_only_name_files_of_its_folder",
    ),
    M(
        "links out of a folder of weights are followed",
        LOADING,
        "    if file.is_symlink():\n",
        "    if False:\n",
        WEIGHTS + "::test_links_out_of_a_folder_are_refused_but_the_hubs_cache_is_read",
    ),
    M(
        "weights are copied although they do not fit",
        LOADING,
        "    if lines:\n        raise BadData(",
        "    if False:\n        raise BadData(",
        WEIGHTS + "::test_what_does_not_fit_is_listed_before_any_weight_is_touched",
    ),
    M(
        "ONNX may keep weights elsewhere",
        ONNX,
        "if number == TENSOR_EXTERNAL or (number == TENSOR_LOCATION and value):",
        "if False:",
        HOSTILE,
    ),
    M("ONNX may bring functions", ONNX, "if number in (MODEL_FUNCTIONS, MODEL_TRAINING):", "if False:", HOSTILE),
    M("ONNX may use any operator", ONNX, "if text not in DOMAINS:", "if False:", HOSTILE),
    M("operators of a node are not looked at", ONNX, "            _domain(bytes(value))", "            pass", HOSTILE),
    M("tensors in attributes are not looked at", ONNX, "                    _tensor(inner)", "                    pass", HOSTILE),
    M("ONNX may ask for any memory", ONNX, "if elements > 2 * len(message):", "if False:", HOSTILE),
    M("ONNX graphs may nest without end", ONNX, "if depth > DEEPEST:", "if False:", HOSTILE),
    M("sparse tensors pass", ONNX, "elif number == GRAPH_SPARSE:", "elif False:", HOSTILE),
    M("a model without a graph passes", ONNX, "    if graphs != 1:", "    if False:", HOSTILE),
    M("ONNX behind a link is read", ONNX, "if path.is_symlink() or not path.is_file():", "if not path.is_file():", LINKED),
    M(
        "onnxruntime is given ONNX unseen",
        "stages/engines/onnxruntime.py",
        'onnxfile.check(source.file("model.onnx"))',
        'source.file("model.onnx")',
        OTHERS,
    ),
    M(
        "OpenVINO is given ONNX unseen",
        "stages/engines/openvino.py",
        'onnxfile.check(source.file("model.onnx"))',
        'source.file("model.onnx")',
        OTHERS,
    ),
]

ALONE = [
    M(
        "a sweep goes on beside a journal it cannot read",
        "pipeline/gc.py",
        "if bad := store.journal(run).damaged():",
        "if bad := []:",
        UPKEEP + "::test_a_damaged_journal_stops_gc_as_long_as_its_run_counts",
    ),
    M(
        "two may make the same artifact",
        LOCKS,
        "        lock.acquire(timeout=0 if waiting else MOMENT)\n",
        "        pass\n",
        ROOM + "::test_a_lock_names_its_holder_and_is_free_again_afterwards",
    ),
    M("a sweep and publishing do not wait", LOCKS, "fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)", "pass", HELD),
    M("a sweep does not wait for publishing", LOCKS, "fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH", "fcntl.LOCK_SH", HELD),
    M(
        "a stage outlives its runner",
        LIMITS,
        "ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)",
        "pass",
        LOOKS + "::test_the_process_of_a_stage_is_killed_with_its_runner_although_it_says_nothing",
    ),
    M(
        "a stage begins without its runner",
        LIMITS,
        "if os.getppid() != parent:",
        "if False:",
        LOOKS + "::test_the_process_of_a_stage_ends_when_its_runner_was_gone_before_it_began",
    ),
    M(
        "a store that others write to is used",
        ROOMS,
        "if found.st_mode & 0o022:",
        "if False:",
        ROOM + "::test_a_store_that_others_may_write_to_is_refused_with_what_to_type",
    ),
    M(
        "a network file system is used",
        ROOMS,
        "if NETWORK.fullmatch(kind) and not allowed:",
        "if False:",
        ROOM + "::test_a_network_file_system_is_refused_unless_accepted",
    ),
]

KEYED = [
    M("the key lacks schema", KEYING, '        "schema": SCHEMA,\n        "stage"', '        "stage"', KEYS),
    M("the key lacks stage", KEYING, '        "stage": stage.kind,\n', "", KEYS),
    M("the key lacks version", KEYING, '        "version": stage.version,\n', "", KEYS, quick=True),
    M("the key lacks rows", KEYING, '        "rows": {path: [row.kind, row.version] for path, row in rows(stage)},\n', "", KEYS),
    M("the key lacks config", KEYING, "for field, value in settings(stage).items() if", "for field, value in () if", KEYS),
    M("the key lacks inputs", KEYING, '        "inputs": inputs,\n', "", KEYS),
    M("the key lacks outside", KEYING, "stage.outside() | _released", "_released", KEYS),
    M(
        "the key lacks the baseline",
        KEYING,
        " | _released(stage),",
        ",",
        GATES + "::test_a_run_is_judged_by_the_baseline_and_again_when_that_changes",
    ),
    M("the key lacks environment", KEYING, '        "environment": stage.environment(),\n', "", KEYS),
    M("the key holds what stands aside", KEYING, "if not any(isinstance(m, Aside) for m in info.metadata)", "if info", KEYS),
    M("the key holds defaults of what came later", KEYING, "for field in kept if field not in late", "for field in kept", KEYS),
    M("the key lacks what came later", KEYING, " and getattr(value, f) == info.default", "", KEYS),
    M("the key lacks versions of rows", KEYING, "[row.kind, row.version]", "[row.kind]", KEYS),
    M("the key lacks rows in lists", KEYING, 'children = [(f"{path}.{i}", v) for i, v in enumerate(value)]', "children = []", KEYS),
    M("the key lacks names that are spoken", KEYING, "[n, ids[n]] if takes.named else ids[n]", "ids[n]", KEYS),
    M("the key lacks the order of inputs", KEYING, "ids[n] for n in names] for f", "ids[n] for n in sorted(names)] for f", KEYS),
    M("numbers that are not finite have a spelling", KEYING, "allow_nan=False", "allow_nan=True", KEYS),
    M("the order of names counts", KEYING, "sort_keys=True, ", "", KEYS),
]
