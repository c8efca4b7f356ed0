"""The CUDA C++ kernels compile ahead of time for the GPUs we name, cost what was promised, and say why they cannot run: all without a GPU.

What they compute is tested in test_OPERATION_cuda.py.
"""

import os
import re
import shutil
import subprocess
import sys
from ctypes import sizeof
from pathlib import Path

import pytest
import torch

from kernels import choose, driver, nvcc

FULL = bool(os.environ.get("STILLHOUSE_FULL"))
TARGETS = nvcc.TARGETS if FULL else (80, 90, 120)
SOURCE = Path(nvcc.__file__).parent / "upsample_ce_kl/kernel.cu"
# Of 84: the ones that need most registers, and one more of each kind.
FEW = "KERNEL(bf16, __nv_bfloat16, SAME, 4, 2, 4) KERNEL(fp32, float, SAME, 0, 2, 4) KERNEL(fp16, __half, OTHER, 0, 1, 4) \
KERNEL(bf16, __nv_bfloat16, NONE, 1, 2, 4) KERNEL(fp32, float, OTHER, 1, 1, 2)"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """(the file, cuobjdump on it with an option)"""
    if not shutil.which("nvcc"):
        pytest.skip("needs nvcc")
    source = tmp_path_factory.mktemp("nvcc") / "kernel.cu"
    source.write_text(("" if FULL else f"#define ONLY {FEW}\n") + f'#include "{SOURCE}"\n')
    built = source.with_suffix(".fatbin")
    strict = ("-Werror=all-warnings", "-Xptxas=--warn-on-spills,--warn-on-local-memory-usage")
    done = subprocess.run(nvcc.command(source, built, TARGETS, *strict), capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr
    return built


def dumped(built: Path, *options: str) -> str:
    triton = pytest.importorskip("triton")  # brings the tool
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, *options, built], check=True, capture_output=True, text=True).stdout


def test_kernels_hold_everything_in_registers_and_leave_room_for_16_warps(compiled):
    """64 K registers: 4 blocks of 128 threads where none takes more than 128."""
    of = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
    found = [(name, *map(int, costs)) for name, *costs in of.findall(dumped(compiled, "--dump-resource-usage"))]
    assert len(found) == (84 if FULL else 5) * len(TARGETS) and len({name for name, *_ in found}) == len(found) / len(TARGETS)
    for name, registers, *memory in found:
        assert registers <= 128 and not any(memory), (name, registers, memory)


def test_there_is_machine_code_for_each_gpu_and_ptx_for_all_others(compiled):
    listed = dumped(compiled, "--list-elf", "--list-ptx")
    assert re.findall(r"sm_(\d+)\.cubin", listed) == [str(n) for n in TARGETS] and re.findall(r"sm_(\d+)\.ptx", listed) == ["80"]


def test_the_arguments_have_the_size_that_the_compiler_gives_them(compiled):
    from kernels.upsample_ce_kl.cuda_ import Arguments

    sizes = re.findall(r"\.param \.align 8 \.b8 backward_\w+\[(\d+)\]", dumped(compiled, "--dump-ptx"))
    assert sizes and set(sizes) == {str(sizeof(Arguments))}


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A source in a folder of its own, and an nvcc that writes what it was asked, or fails where the source says so."""
    source = tmp_path / "kernels/sums/kernel.cu"
    source.parent.mkdir(parents=True)
    source.write_text("good")
    tool = tmp_path / "bin/nvcc"
    tool.parent.mkdir()
    tool.write_text(f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n*_, to, source = sys.argv\nPath(to).write_text('code')\n"
                    "sys.exit('bad' in Path(source).read_text())\n")  # fmt: skip
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    monkeypatch.setattr(nvcc, "HERE", source.parents[1])
    monkeypatch.setattr(driver, "HERE", source.parents[1])
    driver.why_not.cache_clear()
    yield source
    driver.why_not.cache_clear()


def why_not():
    driver.why_not.cache_clear()
    return driver.why_not()


def test_what_was_not_compiled_or_has_changed_since_says_what_to_type(kernel, monkeypatch):
    monkeypatch.setattr(driver, "library", lambda: None)
    assert why_not() == "kernels/sums/kernel.cu was not compiled (python -m kernels.nvcc, where CUDA's nvcc is)"
    assert nvcc.main() == 0 and why_not() == ""
    os.utime(kernel, (2e9, 2e9))
    assert why_not() == "kernels/sums/kernel.fatbin is older than its source (python -m kernels.nvcc)"


def test_a_failure_to_compile_leaves_what_was_there(kernel, monkeypatch, capsys):
    built = kernel.with_suffix(".fatbin")
    built.write_text("before")
    kernel.write_text("bad")
    assert nvcc.main() == 1 and built.read_text() == "before" and len(list(kernel.parent.iterdir())) == 2
    monkeypatch.setenv("PATH", "")
    assert nvcc.main() == 1 and "nvcc is not on the PATH" in capsys.readouterr().err


def test_a_machine_without_a_driver_says_so(kernel, monkeypatch):
    nvcc.main()
    monkeypatch.setattr(driver, "library", lambda: driver.ctypes.CDLL("libcuda-that-is-nowhere.so.1"))
    assert why_not().startswith("the driver cannot be loaded: libcuda-that-is-nowhere.so.1")


def test_without_a_device_it_is_refused_by_name(monkeypatch):
    from kernels.upsample_ce_kl import upsample_ce_kl

    with pytest.raises(ValueError, match="using='cuda' was asked for, but the tensors are on cpu"):
        upsample_ce_kl(torch.zeros(1, 2, 2, 2), None, torch.zeros(1, 4, 4, dtype=torch.uint8), using="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose.unfit("cuda", "cuda", torch.float32) == "there is no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert choose.unfit("cuda", "cuda", torch.float32) == "it is compiled for GPUs from compute capability 8.0 on (Ampere)"


def test_auto_takes_triton_as_long_as_cuda_has_not_been_measured(monkeypatch):
    monkeypatch.setattr(choose, "unfit", lambda *_: "")
    assert choose._variant.__wrapped__("kernels.upsample_ce_kl", "auto", "cuda", torch.float32) == "triton"
