"""F15: hostile files (weights, folders, configs, ONNX, engines, pictures, bundles): each refused in words, nothing of it runs or leads out.

Each file is opened as a user would make the product open it, and judged by what is left behind (every payload leaves a mark), by the
exit code (7 or 2, no traceback, no signal), by the words, by time and memory, and, where strace is there, by what was opened, started
and called: only the given folder, the program's own files and what any program reads of the system. Without strace the figures say so.

Archives: no part of the product opens one, so a bomb or a slip has nothing to act in; as weights, as a folder of data and as pictures
they are refused like anything else that is not what was asked for. Class tables and lists of data sets are text read within limits.
TensorRT plans have no engine row yet, and text matrices no reader: files of that kind are refused where an engine or weights belong.
Memory is limited while runtimes open files and networks are built; while they run, only by the machine.
"""

import atexit
import functools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import hostile
import hostile_bundles
import hostile_graphs
import hostile_pickles
import hostile_places
from common import ROOT
from hostile import HARMLESS, TRIGGERED

QUICK = 30
COVERS = ("pipeline", "stages")
SECONDS, MEMORY = 10, 1 << 30  # of processor time, bytes of growth
PATIENCE = 300  # seconds for one answer on a busy machine
TRACED = "trace=openat,open,openat2,creat,execve,execveat,connect"
# What any program here reads: itself, libraries, facts about the machine; and nothing of anybody's.
SYSTEM = ("/usr/", "/lib/", "/lib64/", "/sys/", "/dev/null", "/dev/urandom", "/dev/shm/sem.")
SYSTEM += ("/etc/ld.so", "/etc/localtime", "/etc/locale.alias", "/etc/nsswitch", "/etc/ssl/openssl.cnf")
FACTS = re.compile(
    r"/proc/(self|\d+)/(statm|stat|status|maps|mounts|mountinfo|cgroup|auxv|cpuset|task(/\d+/(comm|stat))?)$"
    r"|/proc/(meminfo|cpuinfo|stat|mounts|filesystems|vmstat|uptime|version|loadavg)$|/proc/sys/"
)
CALL = re.compile(r"^(?P<pid>\d+) +(?:<\.\.\. )?(?P<call>\w+)")
OPENED = re.compile(r"= \d+<(?P<path>/.*?)>(?:\(deleted\))?$")


@functools.cache
def known():
    found = {**hostile_pickles.cases(), **hostile.cases(), **hostile_graphs.cases(), **hostile_places.cases(), **hostile_bundles.cases()}
    return {"control: what a payload does is seen": hostile_places.CONTROL, **found}


def cases():
    return list(known())


def check(case, place):
    it = known()[case]
    given, outside = place / "given", place / "outside"
    for folder in (given, outside, place / "work"):
        folder.mkdir()
    secrets(outside)
    request = it.make(given, outside)
    before = listed(outside)
    looks, seen = opener().ask({"way": it.way, "place": str(place), **request}) if it.way != "command" else started(request, place)
    marks = listed(outside) - before
    if it.ends == TRIGGERED:
        return triggered(marks, seen, outside)
    assert not marks, f"a payload ran: it left {sorted(marks)}"
    judge(looks, it)
    if seen is not None:
        trespasses(seen, place, it.way)
    return {"seconds": max(x["cpu"] for x in looks), "grown": max(x["grown"] for x in looks), "traced": seen is not None}


def judge(looks, it):
    for look in looks:
        assert not look["hangs"], f"no answer within its time, it said: {look['printed'][-300:]}"
        assert look["code"] >= 0, f"ended by signal {-look['code']}: {look['printed'][-300:]}"
        assert "Traceback" not in look["printed"] and look["code"] in (0, 2, 7), (
            f"code {look['code']}: {look['text']} {look['printed'][-900:]}"
        )
        assert look["cpu"] < SECONDS, f"{look['cpu']:.1f} s of processor time"
        assert look["grown"] < MEMORY, f"grew by {look['grown'] >> 20} MiB"
    last = looks[-1]
    if it.ends == HARMLESS:
        assert last["code"] == 0, f"refused: {last['text']}"
        return
    assert last["code"] in (2, 7), f"accepted without a word: {looks}"
    for look in looks:
        if look["code"]:
            assert re.search(it.says, look["text"]), f"something else was found than {it.says!r}: {look['text'][:600]}"
            assert len(look["text"]) < 6000, f"{len(look['text'])} characters are no message"


def triggered(marks, seen, outside):
    """The proof that this part would see it: a mark, a program that starts, a file that is opened outside."""
    assert marks, "the payload of the control left no mark: no other case proves anything"
    if seen is not None:
        assert any(call == "execve" for call, _ in seen), "no program was seen to start"
        assert any(str(outside) in str(path) for _, path in seen), "no file was seen to be opened outside"
    return {"seconds": 0.0, "grown": 0, "traced": seen is not None}


def trespasses(seen, place, way):
    allowed = (f"{place}/given", f"{place}/work", f"{place}/log", str(work()), str(ROOT), sys.prefix, sys.base_prefix, *SYSTEM)
    started = [line for call, line in seen if call.startswith("execve")]
    assert len(started) <= (way == "command"), f"programs were started: {started}"
    called = [line for call, line in seen if call == "connect"]
    assert not called, f"called: {called}"
    opened = [path for call, path in seen if call not in ("execve", "execveat", "connect")]
    out = [path for path in opened if not path.startswith(allowed) and not FACTS.match(path)]
    assert not out, f"opened outside: {sorted(set(out))[:5]}"


def secrets(outside):
    """What hostile files would like to reach."""
    (outside / "secret.txt").write_text("nobody may read this\n" * 4)
    (outside / "secret.json").write_text("{}")
    hostile.sound(outside, "secret.safetensors")


def listed(folder):
    return {(path.name, path.stat().st_size) for path in folder.rglob("*")} if folder.exists() else {"gone"}


def summary(figures):
    slowest, most = max(f["seconds"] for f in figures), max(f["grown"] for f in figures)
    traced = sum(f["traced"] for f in figures)
    words = f"0 payloads ran; at most {slowest:.1f} s of processor time and {most >> 20} MiB each; "
    words += f"{traced} traced: 0 opens outside, 0 programs, 0 calls" if traced else "not traced: strace cannot be used here"
    return slowest < SECONDS and most < MEMORY, words


# -- the process that opens


@functools.cache
def work():
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def tracing():
    """The tracer in front of a command, or nothing where it may not trace."""
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "-f", "-o", os.devnull, "true"], capture_output=True).returncode:
        return None
    fast = subprocess.run([strace, "-f", "--seccomp-bpf", "-o", os.devnull, "true"], capture_output=True).returncode == 0
    return (strace, "-f", "-q", "-y", "-s", "300", *(("--seccomp-bpf",) if fast else ()), "-e", TRACED, "-o")


def environment():
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests/stages", ROOT / "tests/faults")))
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "TMPDIR")}
    private = {name: str(work()) for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME")}
    return {**kept, **private, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "USER": "faults"}


class Opener:
    """One process of opener.py, and what a tracer sees of it."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(dir=work()))
        self.trace = self.folder / "trace"
        before = (*tracing(), self.trace) if tracing() else ()
        command = [*map(str, before), sys.executable, str(Path(__file__).with_name("opener.py")), str(self.folder)]
        self.said = open(self.folder / "said", "wb")  # noqa: SIM115 (as long as the process lives)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.said}
        self.process = subprocess.Popen(command, text=True, cwd=self.folder, env=environment(), start_new_session=True, **pipes)
        self.number, self.at = 0, 0
        self.answer()

    def ask(self, request):
        """(looks, what was seen of them: [(call, path or line)], or None when nobody looks)"""
        self.number += 1
        try:
            self.process.stdin.write(json.dumps({**request, "number": self.number}) + "\n")
            self.process.stdin.flush()
            return self.answer(), self.seen()
        except Exception:
            opener.cache_clear()
            self.end()
            raise

    def answer(self):
        line = self.process.stdout.readline() if select.select([self.process.stdout], [], [], PATIENCE)[0] else ""
        assert line, f"the process that opens files is gone or hangs: {(self.folder / 'said').read_text(errors='replace')[-1500:]}"
        return json.loads(line)

    def seen(self):
        if tracing() is None:
            return None
        with open(self.trace, errors="replace") as file:
            file.seek(self.at)
            lines = file.read().splitlines()
            self.at = file.tell()
        marks = [i for i, line in enumerate(lines) if f'-{self.number}"' in line and "mark-of-the-opener" in line]
        assert len(marks) == 2, f"the trace does not hold this request: {lines[-3:]}"
        return calls(lines[marks[0] + 1 : marks[1]])

    def end(self):
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait()
        self.process.stdout.close()
        self.said.close()


@functools.cache
def opener():
    found = Opener()
    atexit.register(found.end)
    return found


def calls(lines):
    """[(call, real path of what was opened, or the line)] of all that succeeded; of execve and connect also what failed."""
    found = []
    for line in lines:
        if not (begin := CALL.match(line)):
            continue
        call = begin["call"]
        if call in ("execve", "execveat", "connect"):
            if "resumed" not in line and "AF_UNIX" not in line:
                found.append((call, line))
        elif opened := OPENED.search(line):
            found.append((call, opened["path"]))
    return found


def started(request, place):
    """The same for a command of its own."""
    trace, log = place / "work/trace", place / "work/said"
    before = (*tracing(), trace) if tracing() else ()
    command = [*map(str, before), sys.executable, *request["command"]]
    kept = environment() | ({} if request.get("ours") else {"PYTHONPATH": ""}) | request.get("environment", {})
    with open(log, "wb") as said:
        process = subprocess.Popen(
            command, cwd=request["cwd"], env=kept, stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True
        )
    pid, status, usage = waited(process.pid)
    process.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text(errors="replace")
    look = {"code": process.returncode, "text": text, "printed": text, "hangs": pid is None, "cpu": usage.ru_utime + usage.ru_stime}
    seen = calls(trace.read_text(errors="replace").splitlines()) if tracing() else None
    return [look | {"grown": usage.ru_maxrss * 1024, "kind": None}], seen


def waited(pid):
    clock = threading.Timer(PATIENCE / 3, lambda: os.killpg(pid, 9))
    clock.start()
    try:
        return os.wait4(pid, 0)
    finally:
        clock.cancel()
