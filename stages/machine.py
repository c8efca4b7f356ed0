"""What this machine is, in facts that explain a figure: read from the system, without torch and without starting anything.

A device is probed through the driver itself (ctypes), so that commands which must answer at once can ask for it.
"""

import ctypes
import os
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

# The instruction sets that change speed or rounding of the engines here, as Linux and this page call them.
INSTRUCTIONS = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8")
INSTRUCTIONS += ("amx_bf16", "asimd", "asimdhp", "bf16", "i8mm", "sve")
BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # with any of them a CPU multiplies bfloat16 itself, rather than through float32


@cache
def facts() -> dict:
    """{"cpu", "cores", "instructions", "memory_gb", "platform", "python", "gpus": [{"name", "capability", "memory_gb"}], "driver"}."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "instructions": instructions(),
        "memory_gb": round(_memory_bytes() / 1e9, 1),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gpus": gpus(),
        "driver": _driver_version(),
    }


def has_device() -> bool:
    """Whether the NVIDIA driver answers and holds at least one GPU."""
    return bool(gpus())


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def cpu_name() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


@cache
def instructions() -> list[str]:
    """Those of INSTRUCTIONS this CPU has."""
    info = _cpuinfo()
    have = set((info.get("flags") or info.get("Features") or "").split())
    return [name for name in INSTRUCTIONS if name in have]


def has_bf16() -> bool:
    """Whether this CPU does."""
    return bool(set(BF16) & set(instructions()))


@cache
def gpus() -> list[dict]:
    cuda = _cuda()
    if cuda is None:
        return []
    count = ctypes.c_int(0)
    if cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    return [_gpu(cuda, index) for index in range(count.value)]


def bus_id() -> str | None:
    """Where on the PCI bus the GPU lies that CUDA calls 0 in this process, which is not the driver's own 0 where CUDA_VISIBLE_DEVICES or
    CUDA's order say otherwise; None without one."""
    cuda, device, found = _cuda(), ctypes.c_int(0), ctypes.create_string_buffer(32)
    if cuda is None or cuda.cuDeviceGet(ctypes.byref(device), 0) != 0 or cuda.cuDeviceGetPCIBusId(found, len(found), device) != 0:
        return None
    return found.value.decode(errors="replace")


def version(*distributions: str) -> str:
    """The version of the first of these distributions that is installed, as "name version"; "missing" if none is."""
    for name in distributions:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "missing"


def _gpu(cuda, index: int) -> dict:
    device, total = ctypes.c_int(0), ctypes.c_size_t(0)
    name = ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # ..._MINOR
    return {
        "name": name.value.decode(errors="replace"),
        "capability": f"{major.value}.{minor.value}",
        "memory_gb": round(total.value / 1e9, 1),
    }


@cache
def _cuda():
    """The driver's library after cuInit, or None without driver or GPU."""
    for name in ("nvcuda.dll",) if os.name == "nt" else ("libcuda.so.1",):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        if library.cuInit(0) == 0:
            return library
    return None


def _driver_version() -> str | None:
    """The CUDA version the driver speaks, e.g. "13.0"."""
    cuda, number = _cuda(), ctypes.c_int(0)
    if cuda is None or cuda.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is no such file."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def free_bytes() -> int | None:
    """Memory that programs can have without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0
