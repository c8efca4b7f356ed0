"""What runs on a target: it takes an ONNX file, builds and opens one engine, answers with class maps and times, and ends with its link.

Sent through ssh and run from memory by a Python that has numpy and a runtime; only the work folder is written. One request at a time:
a line of JSON with the number of bytes that follow it, answered in the same way. NONCE and MACHINE are set by whoever starts it
(stages/link.py): what the first line must hold, and the source of stages/machine.py.
"""

import __future__

import ctypes
import fcntl
import hashlib
import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

LINE = 1 << 20  # bytes of a request's first line
CHUNK = 1 << 20  # bytes of a file in one message
FOLDER, NAME = re.compile("[0-9a-f]{64}"), re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
WARM_RUNS, REWARM_RUNS = 10, 2  # as in stages/measure/latency.py


class Unfit(Exception):
    """This machine lacks something; the text says what to do."""


class Agent:
    def __init__(self):
        self.root, self.run, self.ways, self.done = None, None, {}, 0

    def hello(self, payload, workdir, packages):
        self.root = Path(os.path.expanduser(workdir)).absolute()
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(self.root)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise Unfit(f"workdir {workdir} must be a folder of this user that nobody else may write to: chmod go-w, or name another")
        os.environ["XDG_CACHE_HOME"] = str(self.root / "cache")  # nothing is left elsewhere
        machine = loaded("machine", MACHINE)  # noqa: F821
        compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "none")
        return machine.facts() | {"compiler": compiler, "packages": {name: machine.version(name) for name in packages}}, b""

    def put(self, payload, folder, name, sha256, size, at):
        """A piece of a file, from byte `at`; without bytes only a question. Answers how much of it is here: `size` means whole."""
        file = self.place(folder, name)
        if file.exists():
            if digest(file) == sha256:
                return {"have": size}, b""
            file.unlink()
        file.parent.mkdir(mode=0o700, exist_ok=True)
        part = file.with_name(file.name + ".part")
        with part.open("ab") as out:
            fcntl.flock(out, fcntl.LOCK_EX)  # another run may send the same file
            have = out.seek(0, os.SEEK_END)
            if payload and have == at:
                out.write(payload)
                out.flush()
                have += len(payload)
            if have < size:
                return {"have": have}, b""
            os.fsync(out.fileno())
            if digest(part) != sha256:  # of another life: from the beginning
                part.unlink()
                return {"have": 0}, b""
            os.replace(part, file)
        return {"have": size}, b""

    def build(self, payload, given, key, settings, programs):
        """Builds from what was `given` (name -> sha256), once for each key: {"files": {name: {sha256, bytes}}} and what the builder says.

        The engine then lies in folder_of(files). `programs`: name -> bytes of the payload; "builder" is asked, and handed the others.
        """
        record = self.root / "built" / f"{key}.json"
        record.parent.mkdir(mode=0o700, exist_ok=True)
        with record.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                made = json.loads(record.read_text())
                if all(digest(self.root / folder_of(made["files"]) / name) == one["sha256"] for name, one in made["files"].items()):
                    return made, b""
            except (OSError, ValueError, LookupError):
                pass
            have = {name: loaded(name, source) for name, source in {"machine": MACHINE, **parted(payload, programs)}.items()}  # noqa: F821
            return self._build(types.SimpleNamespace(**have), given, key, settings, record), b""

    def _build(self, have, given, key, settings, record):
        work = self.root / "built" / f"{key}.work"
        remove(work)
        work.mkdir(mode=0o700)
        for name in set(given) - {"model.onnx"}:  # a timing cache
            shutil.copyfile(self.place(given[name], name), work / name)
        onnx = self.place(given["model.onnx"], "model.onnx")
        said = have.builder.build(onnx, work, settings, have)
        files = {f.name: {"sha256": digest(f), "bytes": f.stat().st_size} for f in sorted(work.iterdir())}
        folder = self.root / folder_of(files)
        remove(folder)
        os.rename(work, folder)
        made = {"files": files, **said}
        draft = record.with_suffix(".draft")
        draft.write_text(json.dumps(made))
        os.replace(draft, record)
        return made

    def get(self, payload, folder, name, at, size):
        with self.place(folder, name).open("rb") as file:
            file.seek(at)
            return {}, file.read(size)

    def open(self, payload, folder, settings, programs, tail):
        """`tail`: how the logits of an engine that gives them become classes: through argmax.c where it compiles, else in a graph."""
        sent = parted(payload, programs)
        runtime = loaded("runtime", sent["runtime"])
        network = self.run = runtime.load(self.root / folder, settings)
        if tail is None:
            return {}, b""
        native = loaded("argmax", sent["argmax"])
        try:
            rest, how = native.load(sent["argmax.c"], tail, settings["threads"])[0], {"argmax": "native"}
        except native.Unfit as unfit:
            rest, how = runtime.load_tail(self.root / folder, settings), {"argmax": "graph of its own", "why": str(unfit)}
        self.run = lambda images: rest(network(images))
        self.run.bind = lambda images: lambda: self.run(images)  # on a CPU, where images lie is where they are read
        return how, b""

    def maps(self, payload, shape):
        """Images uint8 (B, H, W, 3) -> class maps uint8 (B, H, W)."""
        import numpy as np

        found = np.ascontiguousarray(self.run(np.frombuffer(payload, np.uint8).reshape(shape).copy()))
        return {"shape": list(found.shape), "dtype": str(found.dtype)}, found.tobytes()

    def prepare(self, payload, shapes, size, warmup_ms):
        """Source images, one after the other, each uint8 (h, w, 3): warmed up at both boundaries of stages/measure/latency.py."""
        import numpy as np

        images, at = [], 0
        for shape in shapes:
            n = shape[0] * shape[1] * shape[2]
            images.append(np.frombuffer(payload, np.uint8, n, at).reshape(shape).copy())
            at += n
        self.ways = {"image_ms": [lambda image=image: self.run(fitted(image, size)[None])[0] for image in images]}
        self.ways["engine_ms"] = [self.run.bind(np.array(fitted(image, size)[None])) for image in images]
        for calls in self.ways.values():
            start, done = time.perf_counter(), 0
            while done < (WARM_RUNS if warmup_ms else 1) or (time.perf_counter() - start) * 1e3 < warmup_ms:
                calls[done % len(calls)]()
                done += 1
        self.done = 0  # timed runs: the next turn goes on with the next image
        return {}, b""

    def time(self, payload, runs):
        """Milliseconds of each run at each boundary, and of processor time; boundaries alternate, and so do images."""
        first, self.done = self.done, self.done + runs
        for k in range(first, first + REWARM_RUNS):
            for calls in self.ways.values():
                calls[k % len(calls)]()
        found = {key: [] for boundary in self.ways for key in (boundary, boundary.replace("_ms", "_cpu_ms"))}
        for k in range(first, first + runs):
            for boundary, calls in self.ways.items():
                call = calls[k % len(calls)]
                cpu, start = time.process_time(), time.perf_counter()
                call()
                took, used = time.perf_counter() - start, time.process_time() - cpu
                found[boundary].append(took * 1e3)
                found[boundary.replace("_ms", "_cpu_ms")].append(used * 1e3)
        return found, b""

    def check(self, payload, folder, limit_s):
        """What the runner of a bundle that lies there says of it, started as its receiver would. The bundle does not stay."""
        bundle = self.place(folder, "run.py").parent
        how = {"cwd": bundle, "stdin": subprocess.DEVNULL, "capture_output": True, "preexec_fn": ends_with_this}
        try:
            done = subprocess.run([sys.executable, "-B", str(bundle / "run.py"), "--check"], timeout=limit_s, **how)
        except subprocess.TimeoutExpired:
            raise Unfit(f"the packed runner did not end within {limit_s} s on its sample") from None
        finally:
            shutil.rmtree(bundle)
        texts = {name: getattr(done, name)[: CHUNK // 8].decode("utf-8", "replace") for name in ("stdout", "stderr")}
        return {"code": done.returncode, **texts}, b""

    def place(self, folder, name):
        if not FOLDER.fullmatch(folder) or not NAME.fullmatch(name):
            raise ValueError(f"{folder!r}/{name!r} is no place in the work folder")
        return self.root / folder / name


def main():
    watch()
    given, pipe = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # runtimes print what they like; answers have a pipe of their own
    pipe.write(f"stillhouse {NONCE}\n".encode())  # noqa: F821
    pipe.flush()
    agent = Agent()
    while line := given.readline(LINE):
        request = json.loads(line)
        payload, ask = given.read(request.pop("bytes")), request.pop("ask")
        if ask == "bye":
            break
        try:
            answer, data = getattr(agent, ask)(payload, **request)
        except Exception as error:
            name = type(error).__name__  # every program that was sent has an Unfit of its own
            kind = "lacks" if name == "Unfit" or isinstance(error, ImportError) else "storage" if isinstance(error, OSError) else "failed"
            text = str(error) if name in ("Unfit", "Failed") else f"{name}: {error}"
            answer, data = {"error": kind, "text": text if len(text) < 1000 else f"{text[:600]} ... {text[-400:]}"}, b""
        pipe.write(json.dumps({**answer, "bytes": len(data)}).encode() + b"\n" + data)
        pipe.flush()


def watch():
    """Nobody waits for an answer once the link is cut: end at once, even inside a long build."""
    ends_with_this()  # the server's process of this connection

    def wait():
        hung_up = select.poll()
        hung_up.register(0, 0)  # POLLHUP and POLLERR are always reported
        hung_up.poll()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def ends_with_this():
    """From now on this process ends when the one that started it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def fitted(image, size):
    """uint8 (h, w, 3) -> uint8 (H, W, 3), as the data stage brings images to the network's size."""
    if size is None or list(image.shape[:2]) == list(size):
        return image
    import numpy as np
    from PIL import Image

    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def parted(payload, sizes):
    """{name: bytes}, from what lies one after the other."""
    found, at = {}, 0
    for name, size in sizes.items():
        found[name] = payload[at : at + size]
        at += size
    return found


def loaded(name, source):
    """A module from its source. Annotations are left alone: Python 3.9 does not know all that they say."""
    module = types.ModuleType(name)
    code = compile(source, name, "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True)
    exec(code, module.__dict__)
    return module


def folder_of(files):
    """As stages/elsewhere.py names it."""
    return hashlib.sha256(json.dumps({name: one["sha256"] for name, one in files.items()}, sort_keys=True).encode()).hexdigest()


def digest(file):
    found = hashlib.sha256()
    with file.open("rb") as content:
        while piece := content.read(CHUNK):
            found.update(piece)
    return found.hexdigest()


def remove(folder):
    """A folder of plain files."""
    if folder.is_dir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


if __name__ == "agent":
    main()
