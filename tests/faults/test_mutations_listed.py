"""The list of mutations is whole: every sync, rename and verification in the code stands in it, or in words why it cannot matter."""

import ast
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import mutations
from mutations_of_the_store import EXEMPT

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = [*sorted((ROOT / "pipeline").rglob("*.py")), ROOT / "stages/state.py"]
SYNCS = {"fsync", "fdatasync", "sync_file", "sync_folder"}
RENAMES = {"rename", "rename_folder", "renames"}
LOOKS = {"verify"}


def calls(text):
    """(position of the called name in the text, line, name) of every call that must be listed."""
    lines = text.splitlines(keepends=True)
    starts = [sum(map(len, lines[:n])) for n in range(len(lines))]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and (name := listed(node)):
            end = starts[node.func.end_lineno - 1] + len(lines[node.func.end_lineno - 1].encode()[: node.func.end_col_offset].decode())
            yield end - len(name), lines[node.func.end_lineno - 1].strip(), name


def listed(call):
    """The name of a function that syncs, renames or verifies; `replace` of a text is none of these."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    if name in SYNCS | RENAMES | LOOKS:
        return name
    of_text = len(call.args) == 2 and not (isinstance(function, ast.Attribute) and ast.unparse(function.value) in ("os", "fsops"))
    return name if name == "replace" and isinstance(function, ast.Attribute) and not of_text and not call.keywords else ""


def changed(mutation, text):
    """Where a mutation changes the text: from the first to the last character that differs."""
    begin, old, new = text.index(mutation.old), mutation.old, mutation.new
    front = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    back = next((i for i, (a, b) in enumerate(zip(old[::-1], new[::-1], strict=False)) if a != b), min(len(old), len(new)))
    back = min(back, min(len(old), len(new)) - front)
    return range(begin + front, begin + len(old) - back)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_sync_rename_and_verification_is_mutated_or_told_why_not(file):
    text, name = file.read_text(encoding="utf-8"), str(file.relative_to(ROOT))
    spans = [changed(m, text) for m in mutations.ALL if m.file == name and text.count(m.old) == 1]
    left = [
        f"{name}: {line}"
        for at, line, called in calls(text)
        if not any(at in span or at + len(called) - 1 in span for span in spans) and (name, line.partition("  # ")[0]) not in EXEMPT
    ]
    assert not left, "neither among the mutations nor exempt:\n" + "\n".join(left)


@pytest.mark.parametrize("mutation", mutations.ALL, ids=lambda m: m.name)
def test_what_a_mutation_changes_stands_once_in_its_file_and_the_rest_is_still_a_program(mutation):
    compile(mutations.mutated(mutation, (ROOT / mutation.file).read_text(encoding="utf-8")), mutation.file, "exec")


def test_names_are_unique_and_tests_exist():
    assert len({m.name for m in mutations.ALL}) == len(mutations.ALL)
    for test in {m.test for m in mutations.ALL} - {"f04"}:
        file, _, function = test.partition("::")
        assert not function or f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_nothing_is_exempt_that_is_not_there():
    for (file, line), why in EXEMPT.items():
        assert line in [text.partition("  # ")[0].strip() for text in (ROOT / file).read_text(encoding="utf-8").splitlines()], (file, line)
        assert len(why) > 20


def test_the_search_for_calls_sees_them_and_no_others():
    text = (
        'os.fsync(fd)\nfsops.replace(path, data)\nfile.replace(target)\n"a-b".replace("-", "ü"); sync_folder(x.parent)\nstore.verify(id)\n'
    )
    assert [(name, text[at : at + len(name)]) for at, _, name in calls(text)] == [
        (n, n) for n in ("fsync", "replace", "replace", "sync_folder", "verify")
    ]
