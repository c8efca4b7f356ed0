"""Every Triton kernel that ships compiles for the GPUs we name, and its machine code holds what was promised: no GPU is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPERATIONS = sorted(file.parent.name for file in (ROOT / "kernels").glob("*/triton_.py"))
FULL = bool(os.environ.get("STILLHOUSE_FULL"))
CAPABILITIES = ("80", "90", "120") + (("75", "86", "89", "100") if FULL else ())
FIRST = "100" if FULL else "2"  # of an operation's kernels: those used most

pytest.importorskip("triton")


def costs(operation: str) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests/kernels/ahead.py"), f"kernels.{operation}", FIRST, *CAPABILITIES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_kernels_compile_without_spills_and_without_barriers_between_pixels(operation):
    found = costs(operation)
    assert {str(cost["capability"]) for cost in found} == set(CAPABILITIES)
    for cost in found:
        assert cost["registers"] <= 255 and cost["local"] == cost["spills"] == 0 and cost["shared"] < 48 * 1024, cost
        if operation == "upsample_ce_kl":  # its one exchange between lanes comes once per low-resolution row, after all pixels of it
            assert cost["pixel_loops"] and not any(loop["barriers"] for loop in cost["pixel_loops"]), cost
