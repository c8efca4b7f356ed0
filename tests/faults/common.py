"""What several fault parts need: the toy command line as a process, what its store holds, and the proof that nothing is left running."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TOY = ROOT / "tests/pipeline"  # toy_stages.py and toy_main.py
for folder in (str(TOY), str(ROOT)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

RECIPE = """
name: toy
stages:
  one: {kind: number, value: 1}
  sum: {kind: sum, of: [one]}
  judge: {kind: judge, of: sum, at_most: 10}
"""
PATIENCE = 120  # seconds a command may take on a busy machine before it counts as hanging


def toy(place, recipe=RECIPE, **environment):
    return Toy(place, recipe, environment)


class Toy:
    """A recipe over the toy table in a folder of its own, and the real command line on it."""

    def __init__(self, place, recipe=RECIPE, environment=None, main=TOY / "toy_main.py"):
        self.place, self.recipe, self.store = Path(place), Path(place) / "toy.yaml", Path(place) / ".stillhouse"
        self.recipe.write_text(recipe, encoding="utf-8")
        self.main = main
        paths = os.pathsep.join((str(TOY), str(ROOT)))
        self.environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "TOY_DEVICE": "1", **(environment or {})}

    def command(self, *arguments):
        return [sys.executable, str(self.main), *map(str, arguments)]

    def start(self, *arguments, before=(), **options):
        """`before` is put in front of the command: strace and its options."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": self.place, "env": self.environment} | options
        return subprocess.Popen([*map(str, before), *self.command(*arguments)], start_new_session=True, **options)

    def call(self, *arguments, before=(), timeout=PATIENCE):
        """(exit code, everything said). A command that hangs is killed with all it started, and that is a failure."""
        process = self.start(*arguments, before=before)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{' '.join(map(str, arguments))} hangs") from None
        finally:
            end(process)
        return process.returncode, out + err

    def run(self, *more, before=(), timeout=PATIENCE):
        return self.call("run", self.recipe, "--profile", "none", *more, before=before, timeout=timeout)

    def run_arguments(self):
        return ("run", self.recipe, "--profile", "none")

    def finish(self):
        """The same command once more: it must do what is left, without a hand on the store. Returns the ids."""
        code, said = self.run()
        assert code == 0, f"the same command again ended with {code}: {said[-800:]}"
        left = [p.name for p in (self.store / "tmp").iterdir()]
        assert not left, f"left in tmp: {left}"
        return self.ids()

    def ids(self):
        """{stage: artifact id} as a plan sees it, every byte verified; what is missing or damaged is an error."""
        from pipeline.manifest import Damaged
        from pipeline.plan import make
        from pipeline.recipe import read
        from pipeline.store import Store

        store = Store(self.store)
        found = {}
        for step in make(read(self.recipe, _toy_kinds(), profile="none", sets=()).stages, store):
            assert step.artifact, f"{step.name} is not there: {'; '.join(step.why)}"
            try:
                store.verify(step.artifact.id)
            except Damaged as damage:
                raise AssertionError(f"{step.name}: {damage}") from None
            found[step.name] = step.artifact.id
        return found

    def sound(self, said=""):
        """Everything the store knows is whole, and every artifact that a command announced as made is there."""
        from pipeline.manifest import Damaged
        from pipeline.store import Store

        store, known = Store(self.store), {}
        for ref in sorted((self.store / "refs/cache").glob("[!.]*.json")):
            artifact = store.find(ref.stem)
            assert artifact, f"{ref.name} names an artifact that is missing or damaged"
            known[artifact.id] = ref.stem
        for folder in sorted((self.store / "objects/sha256").glob("*/*")):
            try:
                store.verify(folder.name)
            except Damaged as damage:
                raise AssertionError(str(damage)) from None
        for name, id in announced(said).items():
            assert any(whole.startswith(id) for whole in known), f"{name} was announced as {id} and is not there"
        for run in store.runs():
            for entry in store.journal(run).read():
                if entry["event"] == "stage" and entry["state"] in ("made", "kept"):
                    assert entry["id"] in known, f"the journal of {run} says {entry['stage']} is made, and it is not there"


@functools.cache
def undisturbed(recipe=RECIPE):
    """The ids of a run that nothing happened to."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        return toy(folder, recipe).finish()


def announced(said):
    """{stage: first characters of the id} from what a run printed."""
    lines = [line.split() for line in said.splitlines()]
    return {words[0]: words[-1] for words in lines if len(words) > 4 and words[2] in ("made", "kept") and len(words[-1]) == 12}


def end(process):
    """Kills the process and everything in its group; reaps it and closes what it said."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=PATIENCE)
    for stream in (process.stdout, process.stderr):
        if stream:
            stream.close()


def survivors(place):
    """Processes that still work in or on this folder: [(pid, command)]."""
    found, word = [], os.fsencode(str(place))
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            inside = os.fsencode(os.readlink(folder / "cwd")).startswith(word)
        except OSError:
            continue
        if int(folder.name) != os.getpid() and command and (word in command or inside):
            found.append((int(folder.name), command.replace(b"\0", b" ").decode(errors="replace")[:200]))
    return found


def nobody_left(place, within=10.0):
    """What was killed may need a moment to be gone; what is there after that is an orphan."""
    ends = time.monotonic() + within
    while time.monotonic() < ends:
        if not (left := survivors(place)):
            return
        time.sleep(0.02)
    for pid, _ in left:
        os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"still running: {left}")


def _toy_kinds():
    import toy_stages

    return toy_stages.KINDS
