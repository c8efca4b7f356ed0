"""Compiles the CUDA C++ kernels ahead of time: `python -m kernels.nvcc`. It needs nvcc, and neither a GPU nor torch.

Each kernels/OPERATION/kernel.cu becomes kernel.fatbin beside it: machine code for the GPUs in TARGETS, and PTX of the first of
them, which the driver of any other or later GPU translates when it loads it. kernels/driver.py loads the file.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
TARGETS = (80, 86, 87, 89, 90, 100, 120)  # compute capability times ten: A100, RTX 30, Orin, RTX 40 and L4, H100, B200, RTX 50


def main() -> int:
    if not shutil.which("nvcc"):
        print("nvcc is not on the PATH: it comes with the CUDA toolkit (cuda-nvcc in NVIDIA's packages), 12.8 or later", file=sys.stderr)
        return 1
    for source in sorted(HERE.glob("*/kernel.cu")):
        began, built, new = time.monotonic(), source.with_suffix(".fatbin"), source.with_suffix(".fatbin.new")
        if (done := subprocess.run(command(source, new))).returncode:
            new.unlink(missing_ok=True)
            return done.returncode
        os.replace(new, built)  # whole or not at all
        print(f"{built.relative_to(HERE.parent)}: {built.stat().st_size / 2**20:.1f} MiB in {time.monotonic() - began:.0f} s")
    return 0


def command(source: Path, to: Path, targets: Iterable[int] = TARGETS, *more: str) -> list[str]:
    """--ftz: numbers below 2^-126 count as 0, so that 2^x is one instruction."""
    first, *_ = targets
    code = [f"-gencode=arch=compute_{n},code={f'[sm_{n},compute_{n}]' if n == first else f'sm_{n}'}" for n in targets]
    return ["nvcc", "-std=c++17", "-O3", "--ftz=true", "--fatbin", "--threads=0", *code, *more, "-o", str(to), str(source)]


if __name__ == "__main__":
    sys.exit(main())
