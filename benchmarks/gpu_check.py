"""All that a GPU has to say about the loss kernels: tests at real sizes, the memory checker, and speed. `make gpu-check`.

    python benchmarks/gpu_check.py [--minutes 8] [--tune] [--tiny]

Needs PyTorch, Triton, NumPy and pytest, and nothing else of this package. Writes benchmarks/gpu/<device>-<date>.json, with a table in
Markdown and all that pytest said beside it. Speed is not told where a test fails. All of it runs with the launch configurations that
ship, whatever was tuned on this machine before; --tune gives half of the time for speed to what other configurations would bring.
--tiny rehearses all of it where there is no GPU: Triton's interpreter on a CPU, and sizes that tell nothing about speed; its files
say so in their names.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kernels import bench, choose, native, tune  # noqa: E402

FIRST = "upsample_ce_kl"  # the most used operation is measured first, for the time may run out


def main() -> int:
    asked = _parser().parse_args()
    if missing := [name for name in ("triton", "numpy", "pytest") if find_spec(name) is None]:
        print(f"{sys.executable} has no {', '.join(missing)}: pip install {' '.join(missing)}", file=sys.stderr)
        return 2
    if asked.small:
        return small()
    if not asked.tiny and not torch.cuda.is_available():
        print("no CUDA device was found; --tiny rehearses the check on a CPU", file=sys.stderr)
        return 2
    began = time.monotonic()
    device = "cpu" if asked.tiny else "cuda"
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # where a package may have been brought along
    with tempfile.TemporaryDirectory() as cache:
        return checked(asked, device, began, {**os.environ, "PYTHONPATH": paths, "XDG_CACHE_HOME": cache})


def checked(asked: argparse.Namespace, device: str, began: float, environment: dict) -> int:
    environment |= {"TRITON_INTERPRET": "1"} if asked.tiny else {}
    name = "interpreter" if asked.tiny else re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    out = ROOT / "benchmarks/gpu" / f"{name}-{time.strftime('%Y-%m-%d')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    tests = tested(environment, 60 * asked.minutes * 0.45, out.with_suffix(".log"))
    print(tests["said"], flush=True)
    checks = {tool: sanitized(tool, environment) for tool in ("memcheck", "racecheck")}
    print("\n".join(f"{tool}: {said}" for tool, said in checks.items()), flush=True)
    told = {"machine": bench.machine(device), "tests": tests, "sanitizer": checks, "results": []}
    if tests["passed"]:
        left = max(60.0, 60 * asked.minutes - (time.monotonic() - began) - 10)
        out.unlink(missing_ok=True)  # what an earlier check measured
        common = ["--device", device, "--seconds", f"{left / 2 if asked.tune else left:.0f}", *(["--tiny"] if asked.tiny else [])]
        operations = sorted(bench.measurable(), key=lambda name: name != FIRST)
        command = [sys.executable, "-m", "kernels.bench", *operations, "--untested", *common, "--json", str(out)]
        told["bench"] = subprocess.run([*command, "--rounds", "1" if asked.tiny else "30"], cwd=ROOT, env=environment).returncode
        told["results"] = json.loads(out.read_text())["results"] if out.exists() else []
        if asked.tune:
            subprocess.run([sys.executable, "-m", "kernels.tune", *common], cwd=ROOT, env=environment)
            written = next(Path(environment["XDG_CACHE_HOME"]).glob("stillhouse/kernels/*.json"), None)
            told["tuned"] = json.loads(written.read_text())["measured"] if written else []
    told["seconds"] = round(time.monotonic() - began)
    out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(page(told), encoding="utf-8")
    print(f"wrote {out.relative_to(ROOT)} and {out.with_suffix('.md').name} in {told['seconds']} s")
    clean = all(not said.startswith("FOUND") for said in checks.values())
    return 0 if tests["passed"] and clean and told.get("bench") == 0 else 1


def tested(environment: dict, seconds: float, log: Path) -> dict:
    """Every test of the kernels, on this device; several at once where pytest-xdist is there. What is left out is said, and why."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "-o", "addopts=--import-mode=importlib", "tests/kernels"]
    command += ["-n", str(min(8, os.cpu_count() or 1))] if find_spec("xdist") else []
    why = native.why_not()  # of no concern to a GPU
    command += ["-k", "not cpu"] if why else []
    ended = _watched(command, environment | {"COLUMNS": "200"}, seconds, log)  # wide enough for the reasons
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["pytest said nothing"]
    said = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    said += [f"left out, tests of the compiled CPU variants: {why}"] if why else []
    said += [] if ended is not None else [f"the tests did not end within {seconds:.0f} s"]
    return {"passed": ended == 0, "said": "\n".join([*said, lines[-1]])}


def _watched(command: list[str], environment: dict, seconds: float, log: Path) -> int | None:
    """The exit code, or None where time ran out and the command was ended with all it had started."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def sanitized(tool: str, environment: dict) -> str:
    """One small case of every operation under NVIDIA's checker."""
    if not torch.cuda.is_available() or not (found := shutil.which("compute-sanitizer")):
        return "not run: " + ("no CUDA device" if not torch.cuda.is_available() else "compute-sanitizer is not installed")
    command = [found, "--tool", tool, "--error-exitcode", "9", sys.executable, __file__, "--small"]
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor in memory of its own: what is beside it is nobody's
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment | alone, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "not finished within 120 s"
    said = (done.stdout + done.stderr).strip().splitlines()
    # "ERROR SUMMARY: 0 errors" of memcheck, "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
    if done.returncode == 0 and any(re.search(r" SUMMARY: 0 (errors|hazards)", line) for line in said):
        return "0 errors"
    if done.returncode == 9:
        return f"FOUND: {' | '.join(said[-3:])}"
    return f"did not work here: {' | '.join(said[-2:])}"


def small() -> int:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for operation in bench.measurable():
        sizes = import_module(f"kernels.{operation}.sizes")
        for size in sizes.SIZES["tiny"].values():
            for name in choose.variants(f"kernels.{operation}"):
                if name != "reference" and not choose.unfit(name, device, torch.float32):
                    given = sizes.inputs(**size, device=device, dtype=torch.float32, seed=0)
                    sizes.loss(*given, using=name).backward()
    return 0


def page(told: dict) -> str:
    lines = [f"# Loss kernels on {told['machine']['device']}", "", ", ".join(told["machine"].values()) + ". Command: `make gpu-check`.", ""]
    lines += ["Tests:", "", *(f"    {line}" for line in told["tests"]["said"].splitlines()), ""]
    lines += [f"{tool}: {said}  " for tool, said in told["sanitizer"].items()]
    if not told["tests"]["passed"]:
        return "\n".join([*lines, "", "No speed is told: a test failed."]) + "\n"
    for result in told["results"]:
        lines += ["", "```", *bench.table(result)[1:], "```"]
    if told.get("tuned"):
        lines += ["", "What `python -m kernels.tune` finds, forward and backward together:", ""]
        lines += ["```", *map(tune.line, told["tuned"]), "```"]
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tune", action="store_true", help="see what other launch configurations would bring")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
