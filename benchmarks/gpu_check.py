"""All that a GPU has to say about the loss kernels: tests at real sizes, the memory checker, and speed. `make gpu-check`.

    python benchmarks/gpu_check.py [--minutes 8] [--tiny]

Needs PyTorch, Triton and pytest, and nothing else of this package. Writes benchmarks/gpu/<device>-<date>.json, with a table in
Markdown beside it. Speed is not told where a test fails. --tiny rehearses all of it where there is no GPU: Triton's interpreter
on a CPU, and sizes that tell nothing about speed; its files say so in their names.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kernels import bench, choose  # noqa: E402


def main() -> int:
    asked = _parser().parse_args()
    if asked.small:
        return small()
    if not asked.tiny and not torch.cuda.is_available():
        print("no CUDA device was found; --tiny rehearses the check on a CPU", file=sys.stderr)
        return 2
    began = time.monotonic()
    device = "cpu" if asked.tiny else "cuda"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"TRITON_INTERPRET": "1"} if asked.tiny else {})
    name = "interpreter" if asked.tiny else re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    out = ROOT / "benchmarks/gpu" / f"{name}-{time.strftime('%Y-%m-%d')}.json"
    tests = tested(environment, 60 * asked.minutes * 0.45)
    print(tests["said"], flush=True)
    checks = {tool: sanitized(tool, environment) for tool in ("memcheck", "racecheck")}
    print("\n".join(f"{tool}: {said}" for tool, said in checks.items()), flush=True)
    told = {"machine": bench.machine(device), "tests": tests, "sanitizer": checks, "results": []}
    if tests["passed"]:
        left = max(60.0, 60 * asked.minutes - (time.monotonic() - began) - 10)
        command = [sys.executable, "-m", "kernels.bench", "--untested", "--device", device, "--seconds", f"{left:.0f}", "--json", str(out)]
        done = subprocess.run(command + (["--tiny", "--rounds", "1"] if asked.tiny else ["--rounds", "30"]), cwd=ROOT, env=environment)
        told |= {"results": json.loads(out.read_text())["results"], "bench": done.returncode}
    told["seconds"] = round(time.monotonic() - began)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(page(told), encoding="utf-8")
    print(f"wrote {out.relative_to(ROOT)} and {out.with_suffix('.md').name} in {told['seconds']} s")
    clean = all(not said.startswith("FOUND") for said in checks.values())
    return 0 if tests["passed"] and clean and told.get("bench") == 0 else 1


def tested(environment: dict, seconds: float) -> dict:
    """Every test of the kernels, on this device; several at once where pytest-xdist is there."""
    parallel = subprocess.run([sys.executable, "-c", "import xdist"], capture_output=True).returncode == 0
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=--import-mode=importlib", "tests/kernels"]
    try:
        done = subprocess.run(
            command + (["-n", "4"] if parallel else []), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"passed": False, "said": f"the tests did not end within {seconds:.0f} s"}
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["pytest said nothing"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"passed": done.returncode == 0, "said": "\n".join([*failed, lines[-1]])}


def sanitized(tool: str, environment: dict) -> str:
    """One small case of every operation under NVIDIA's checker."""
    if not torch.cuda.is_available() or not (found := shutil.which("compute-sanitizer")):
        return "not run: " + ("no CUDA device" if not torch.cuda.is_available() else "compute-sanitizer is not installed")
    command = [found, "--tool", tool, "--error-exitcode", "9", sys.executable, __file__, "--small"]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "not finished within 120 s"
    said = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode == 0 and any("ERROR SUMMARY: 0 errors" in line for line in said):
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
    lines += [f"Tests: {told['tests']['said'].splitlines()[-1]}", ""] + [f"{tool}: {said}" for tool, said in told["sanitizer"].items()]
    if not told["tests"]["passed"]:
        return "\n".join([*lines, "", "No speed is told: a test failed."]) + "\n"
    for result in told["results"]:
        lines += ["", "```", *bench.table(result)[1:], "```"]
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
