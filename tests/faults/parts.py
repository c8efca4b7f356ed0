"""What a part of the fault tests is, how one case of it runs, and what is remembered of it, for the driver and for pytest alike.

A part is a module f*.py here, or mutations.py: its docstring's first line says which faults and what is promised, `cases()` names
the cases, `check(case, place)` runs one in an empty folder and raises AssertionError where the promise is broken. Optional are
QUICK (how many cases `make test` takes) or `quick()` (which), NEEDS (programs), `lacks()` (other things this machine refuses, in
words), COVERS (packages whose code decides the result) and `summary(figures)`, which judges the figures of all cases together.

Run as `python tests/faults/parts.py PART` this is a worker: case names on stdin, one record per line on stdout.
"""

import ast
import contextlib
import hashlib
import importlib.util
import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BESIDE = (HERE, ROOT / "tests/pipeline", ROOT / "tests/stages")  # where a part may import helpers from


def find(asked=(), folder=HERE):
    """{"f07_corruption": path, ...} of the parts asked for, or of all. A part may be called f07 for short."""
    known = {path.stem: path for path in sorted(folder.glob("f[0-9]*.py")) + sorted(folder.glob("mutations.py"))}
    chosen = [name for word in asked for name in known if word in (name, name.partition("_")[0])]
    for word in asked:
        if not any(word in (name, name.partition("_")[0]) for name in known):
            raise SystemExit(f"there is no part {word!r}; there are: {', '.join(known)}")
    return {name: known[name] for name in (dict.fromkeys(chosen) if asked else known)}


def load(path):
    for folder in (*reversed(BESIDE), path.parent, ROOT):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    part = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(part)
    return part


def title(part):
    return part.__doc__.strip().splitlines()[0]


def lacking(part):
    """What this machine has not, in words; empty where the part can run."""
    missing = [f"{program} is not installed" for program in getattr(part, "NEEDS", ()) if shutil.which(program) is None]
    return missing or (list(part.lacks()) if hasattr(part, "lacks") else [])


def quick(part):
    """The cases for `make test`: those the part names, or QUICK of them spread evenly over all."""
    return list(part.quick()) if hasattr(part, "quick") else spread(part.cases(), part.QUICK)


def spread(items, count):
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def judged(part, figures):
    """Whether the figures of all cases together keep the promise, and what they say."""
    if not hasattr(part, "summary"):
        return True, ""
    try:
        ok, words = part.summary([f for f in figures if f is not None])
    except Exception as error:
        return False, f"summary: {type(error).__name__}: {error}"
    return bool(ok), words


def bound(failures, count):
    """Failures per case that can be excluded at 95 %: the rule of three, or with failures the exact binomial bound, by bisection."""
    if count == 0 or failures == count:
        return 1.0
    if failures == 0:
        return min(1.0, 3 / count)
    low, high = failures / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(failures, count, middle) > 0.05 else (low, middle)
    return high


def _at_most(failures, count, rate):
    """The probability of so few failures at this rate."""
    logs = (_log_choose(count, k) + k * math.log(rate) + (count - k) * math.log1p(-rate) for k in range(failures + 1))
    return sum(math.exp(term) for term in logs) if rate < 1 else 0.0


def _log_choose(n, k):
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


# -- one case


def run(part, case):
    """The record of one case, run in a private folder that is removed afterwards."""
    place, began = Path(tempfile.mkdtemp(prefix="fault-")), time.monotonic()
    ok, words, figures = True, "", None
    try:
        figures = part.check(case, place)
    except Exception as error:
        ok, words = False, str(error) if isinstance(error, AssertionError) and str(error) else f"{type(error).__name__}: {error}"
        if not isinstance(error, AssertionError):
            words += f" ({_where(error)})"
    finally:
        remove(place)
    return {"case": case, "ok": ok, "words": words, "figures": figures, "took": round(time.monotonic() - began, 3)}


def remove(place):
    """Also where a case left folders that may not be written."""
    for folder, _, _ in os.walk(place):
        os.chmod(folder, stat.S_IRWXU)
    shutil.rmtree(place, ignore_errors=True)


def _where(error):
    frames = []
    step = error.__traceback__
    while step:
        frames.append(f"{Path(step.tb_frame.f_code.co_filename).name}:{step.tb_lineno}")
        step = step.tb_next
    return " > ".join(frames[-3:])


class Worker:
    """A process of its own that runs one case after the other; when it dies, the case it had is a failure and a fresh one takes over."""

    def __init__(self, path):
        self.path, self._process, self._place = path, None, None

    def run(self, case):
        """The record, or None where Ctrl-C ended it."""
        if self._process is None:
            self._place = Path(tempfile.mkdtemp(prefix="faults-"))
            command = [sys.executable, str(HERE / "parts.py"), str(self.path)]
            options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
            self._process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(self._place)}, **options)
        try:
            self._process.stdin.write(json.dumps(case) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        code = self.close()
        if code in (128 + signal.SIGINT, -signal.SIGINT):
            return None
        return {"case": case, "ok": False, "words": f"the process that ran it ended with code {code}", "figures": None, "took": 0.0}

    def close(self):
        """Its exit code, if there was one; what it left in its folder for temporary files goes too."""
        if self._process is None:
            return None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        code = self._process.wait()
        self._process.stdout.close()
        self._process = None
        remove(self._place)
        return code


def serve(path):
    """What a worker does. Whatever a case prints goes to stderr, so that stdout holds nothing but records."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    part = load(path)
    for line in sys.stdin:
        answers.write(json.dumps(run(part, json.loads(line))) + "\n")
        answers.flush()


# -- what is remembered


class Records:
    """FOLDER/<part>.jsonl: a record per case, kept as long as the code that decided it is the same."""

    def __init__(self, folder, name, digest, fresh=False):
        self.path, self.digest, self.by_case = folder / f"{name}.jsonl", digest, {}
        folder.mkdir(exist_ok=True)
        if self.path.exists() and not fresh:
            for line in self.path.read_text(encoding="utf-8").splitlines():
                record = _parsed(line)
                if record and record.get("digest") == digest:
                    self.by_case[record["case"]] = record
        self.path.write_text("".join(json.dumps(record) + "\n" for record in self.by_case.values()), encoding="utf-8")

    def add(self, record):
        self.by_case[record["case"]] = record = {**record, "digest": self.digest}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _parsed(line):
    try:
        return json.loads(line)
    except ValueError:  # torn: the driver was killed here
        return None


def digest(path, part):
    """Of what the code does that decides the results: the part, what it imports from the tests, and the packages it covers."""
    files = {path} | _helpers(path, set())
    if HERE / "common.py" in files:
        files |= {ROOT / "tests/pipeline/toy_main.py", ROOT / "tests/pipeline/toy_stages.py"}
    for package in getattr(part, "COVERS", ("pipeline",)):
        files |= set((ROOT / package).rglob("*.py"))
    hasher = hashlib.sha256()
    for file in sorted(files):
        hasher.update(ast.dump(_bare(ast.parse(file.read_text(encoding="utf-8")))).encode())
    return hasher.hexdigest()[:16]


def _helpers(path, seen):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        for file in (folder / f"{name}.py" for name in names for folder in BESIDE):
            if file.exists() and file not in seen:
                seen.add(file)
                _helpers(file, seen)
    return seen


def _bare(tree):
    """Without docstrings; comments and layout are not in it anyway."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body.pop(0)
    return tree


if __name__ == "__main__":
    try:
        serve(Path(sys.argv[1]).resolve())
    except KeyboardInterrupt:
        sys.exit(130)
