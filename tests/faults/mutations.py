"""Mutations: each sync, verification, rename and part of a key is taken out of a copy of the code, and a named test must fail.

The list is in mutations_of_*.py; test_mutations_listed.py holds it against the code. Each test also runs on the unchanged copy and
must pass there, so that it fails for no other reason.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from mutation import Mutation
from mutations_of_checks import ALONE, FROM_ELSEWHERE, KEYED, LEARNT, PUBLISHED, TOLD
from mutations_of_the_store import RENAMES, STORED, SYNCS

ALL = [*SYNCS, *RENAMES, *STORED, *PUBLISHED, *TOLD, *LEARNT, *FROM_ELSEWHERE, *ALONE, *KEYED]

ROOT = Path(__file__).resolve().parent.parent.parent
COVERS = ("pipeline", "stages", "kernels")
COPIED = ("pipeline", "stages", "kernels", "tests", "recipes", "pyproject.toml")
PATIENCE = 240  # seconds a test may take on a busy machine
UNCHANGED = "unchanged: "
# A fault part up to its first failure, in the order of its quick cases; the exit code is 1 when there is one.
FIRST_FAILURE = """
import sys
sys.path.insert(0, "tests/faults")
import parts
part = parts.load(next(iter(parts.find(sys.argv[1:]).values())))
sys.exit(next((r["words"] for r in (parts.run(part, case) for case in parts.quick(part)) if not r["ok"]), 0))
"""


def cases() -> list[str]:
    return [UNCHANGED + test for test in dict.fromkeys(m.test for m in ALL)] + [m.name for m in ALL]


def quick() -> list[str]:
    """A few of each kind; all of them take half an hour."""
    return [m.name for m in ALL if m.quick]


def check(case: str, place: Path) -> None:
    mutation = next((m for m in ALL if m.name == case), None)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, place / name)
    if mutation is None:
        code, said = _run(case.removeprefix(UNCHANGED), place)
        assert code == 0, f"{case} fails without any mutation:\n{said[-2000:]}"
        return
    file = place / mutation.file
    file.write_text(mutated(mutation, file.read_text(encoding="utf-8")), encoding="utf-8")
    compile(file.read_text(encoding="utf-8"), mutation.file, "exec")
    code, said = _run(mutation.test, place)
    assert code != 0, f"{mutation.test} passes although {mutation.name} (in {mutation.file})"
    assert code == 1, f"{mutation.test} did not fail but broke (code {code}):\n{said[-2000:]}"


def mutated(mutation: Mutation, text: str) -> str:
    found = text.count(mutation.old)
    assert found == 1, f"{mutation.name}: {mutation.file} holds this text {found} times, and once was expected: {mutation.old!r}"
    assert mutation.new != mutation.old, f"{mutation.name} changes nothing"
    return text.replace(mutation.old, mutation.new)


def _run(test: str, place: Path) -> tuple[int, str]:
    """The exit code of a test in the copy: 0 good, 1 failed, otherwise it could not run."""
    if test.startswith("tests/"):
        command = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *test.split()]
    else:
        command = ["-c", FIRST_FAILURE, test]
    paths = os.pathsep.join(map(str, (place, place / "tests/pipeline", place / "tests/stages")))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(place)}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return 1, f"it hung for {PATIENCE} s"  # a mutation that makes it hang is noticed too
    finally:
        _end(process)
    return process.returncode, said


def _end(process: subprocess.Popen) -> None:
    """With all that it started."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        return
    finally:
        process.stdout.close()
        process.wait()
