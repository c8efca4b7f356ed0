"""Opens hostile files as the product does, each in a forked child of one process, so that torch and the runtimes start once.

`python opener.py WORK` reads requests as JSON lines on stdin and answers with JSON lines. Around each request two marks are left
in the list of opened files (paths that do not exist), so that whoever traces this process knows what belongs to which request.
"""

import contextlib
import json
import os
import pickle
import select
import signal
import sys
import time
import traceback
from pathlib import Path

PATIENCE = 90  # seconds one look may take on a busy machine before it counts as hanging
MARK = "/mark-of-the-opener"


def serve(work):
    """The answers go to the former stdout; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    from pipeline.errors import Missing

    torch.set_num_threads(1)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # as stages do before they import it
    for module in ("transformers", "safetensors.torch", "onnxruntime", "stages.load", "stages.validate", "stages.optimize"):
        with contextlib.suppress(ImportError):
            __import__(module)
    from stages.engines.openvino import silent

    with contextlib.suppress(Missing):
        silent()
    told, code, _ = apart(lambda events: prepare(work), work)
    assert code == 0, told
    answers.write(json.dumps({"ready": True}) + "\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line), work)) + "\n")
        answers.flush()


def prepare(work):
    """A few scenes, an untrained network on them, and a sound ONNX: what hostile files are put beside."""
    import hostile_graphs
    import small_line

    data = small_line.data(work)
    student = small_line.checkpoint(work, data)
    (work / "onnx").mkdir()
    (work / "onnx/model.onnx").write_bytes(hostile_graphs.model())
    artifacts = {a.name: {k: str(v) if k == "folder" else v for k, v in vars(a).items()} for a in (data, student)}
    (work / "artifacts.json").write_text(json.dumps(artifacts))


def answer(request, work):
    place = Path(request["place"])
    mark(f"begins-{request['number']}")
    try:
        looks = [look(events, place) for events in WAYS[request["way"]](request, place, work)]
    finally:
        mark(f"ends-{request['number']}")
    return looks


def look(action, place):
    """{code, kind, text, cpu, grown, signal, hangs, printed} of one look in a child."""
    log = place / "log"
    told, code, usage = apart(action, place, log)
    error = next((t["error"] for t in told if "error" in t), {})
    begun = next((t["begun"] for t in told if "begun" in t), 0)
    return {
        "code": code,
        "kind": error.get("kind"),
        "text": error.get("text", ""),
        "cpu": usage.ru_utime + usage.ru_stime if usage else 0.0,
        "grown": max(0, usage.ru_maxrss * 1024 - begun) if usage else 0,
        "hangs": usage is None,
        "printed": log.read_text(errors="replace")[-1500:] if log.exists() else "",
    }


def apart(action, place, log=None):
    """(what it told, exit code or minus the signal, resources) of `action`, called in a child of its own."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(here)
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the requests are not for it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = 1
        try:
            if log:
                out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(out, 1)
                os.dup2(out, 2)
            os.write(there, json.dumps({"begun": resident()}).encode() + b"\n")
            code = action(there) or 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    os.close(there)
    said, ends, usage = b"", time.monotonic() + PATIENCE, None
    while (left := ends - time.monotonic()) > 0 and select.select([here], [], [], left)[0]:
        if not (piece := os.read(here, 1 << 16)):
            break
        said += piece
    while time.monotonic() < ends:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.01)
    else:
        usage = None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if usage is None:
        _, status, _ = os.wait4(child, 0)
    os.close(here)
    told = [json.loads(line) for line in said.splitlines() if line.endswith(b"}")]
    return told, os.waitstatus_to_exitcode(status), usage


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def mark(word):
    with contextlib.suppress(OSError):
        os.close(os.open(f"{MARK}-{word}", os.O_RDONLY))


# -- the ways to the product; each gives the looks that a user's command would take, in order


def stage(target, config, inputs, place, rehearsing=False):
    """The process of a stage, as the runner starts it."""
    from pipeline import child

    def action(events):
        for name in ("out", "state"):
            (place / "work" / name).mkdir(parents=True, exist_ok=True)
        spec = {
            "target": target,
            "config": config,
            "inputs": inputs,
            "lineage": {},
            "rehearsing": rehearsing,
            "place": None,
            "released": None,
        }
        spec |= {name: str(place / "work" / name) for name in ("out", "state")}
        file = place / "work/spec.json"
        file.write_text(json.dumps(spec))
        sys.stdin = open(file, encoding="utf-8")  # noqa: SIM115 (the process ends with it)
        return child.main(str(file), str(events), str(os.getppid()))

    return action


def planned(target, config):
    """What a plan asks of a stage before anything runs."""
    from pipeline.errors import Stillhouse

    def action(events):
        module, _, name = target.partition(":")
        try:
            getattr(__import__(module, fromlist=[name]), name).model_validate(config).outside()
        except Stillhouse as error:
            text = {"error": {"kind": type(error).__name__, "text": str(error)}}
            os.write(events, json.dumps(text).encode() + b"\n")
            return error.code

    return action


def loading(request, place, work):
    """A teacher from elsewhere: a plan looks at the files first; with a hub's commit in their place only the stage does."""
    config = {"kind": "load", "data": "data", "model": request["model"], "weights": {"file": request["weights"]}}
    return [planned("stages.load:Load", config), stage("stages.load:Load", config, known(work, "data"), place)]


def starting(request, place, work):
    """The start of a training."""
    fit = {"steps": 1, "batch": 1, "crop": [32, 32]}
    config = {"kind": "train", "data": "data", "model": request["model"], "init": {"file": request["weights"]}, "fit": fit}
    return [planned("stages.train:Train", config), stage("stages.train:Train", config, known(work, "data"), place)]


def optimizing(request, place, work):
    """An ONNX file that becomes an engine."""
    config = {"kind": "optimize", "onnx": "onnx", "engine": {"kind": request["engine"], "threads": 1}}
    return [stage("stages.optimize:Optimize", config, {"onnx": artifact("onnx", "OnnxModel", request["folder"], work)}, place)]


def measuring(request, place, work):
    """An engine, an ONNX file or a checkpoint that is measured."""
    found = artifact("it", request["artifact"], request["folder"], work, **request.get("facts", {}))
    config = {"kind": "validate", "data": "data", "reference": "student", "candidates": ["it"], "pictures": 0, "latency_of": []}
    inputs = {**known(work, "data"), "reference": known(work, "student")["student"], "candidates": [found], "latency_of": []}
    return [stage("stages.validate:Validate", config, inputs, place)]


def reading(request, place, work):
    """A data set from elsewhere."""
    config = {"kind": "data", "source": request["source"], "size": [32, 32]}
    return [planned("stages.data:Data", config), stage("stages.data:Data", config, {}, place)]


def showing(request, place, work):
    """A Dataset artifact whose pixels are opened, by loading a sound teacher on it."""
    data = known(work, "data")["data"] | {"folder": request["folder"]}
    weights = json.loads((work / "artifacts.json").read_text())["student"]["folder"] + "/weights.safetensors"
    config = {"kind": "load", "data": "data", "model": {"kind": "tiny", "size": "small"}, "weights": {"file": weights}}
    return [stage("stages.load:Load", config, {"data": data}, place)]


def unguarded(request, place, work):
    """What the product never does: proof that a payload is seen."""

    def action(events):
        pickle.loads(Path(request["file"]).read_bytes())

    def elsewhere(events):
        Path(request["outside"]).read_bytes()

    return [action, elsewhere]


def known(work, name):
    return {name: json.loads((work / "artifacts.json").read_text())[name]}


def artifact(name, kind, folder, work, **facts):
    shared = {key: known(work, "data")["data"]["facts"][key] for key in ("classes", "colours", "size")}
    return {"name": name, "kind": kind, "id": "0" * 64, "folder": folder, "facts": shared | facts, "beside": {}}


WAYS = {
    "weights": loading,
    "init": starting,
    "onnx": optimizing,
    "measure": measuring,
    "data": reading,
    "pixels": showing,
    "unguarded": unguarded,
}

if __name__ == "__main__":
    serve(Path(sys.argv[1]))
