"""What the GPUs were doing while time was measured: SM clocks and why they were held back, through the driver's own library (ctypes)."""

import ctypes
import os
from functools import cache

SM_CLOCK = 1  # NVML_CLOCK_SM
SLOWED = {  # bits of nvmlDeviceGetCurrentClocksEventReasons that make a GPU slower than it could be (nvml.h)
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "too hot",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}


def state() -> list[dict]:
    """[{"sm_mhz", "slowed": [...]}] of every GPU, in the driver's order; [] without driver or GPU."""
    nvml = _library()
    if nvml is None:
        return []
    count = ctypes.c_uint(0)
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    return [found for index in range(count.value) if (found := _gpu(nvml, index))]


def slowed(reasons: int) -> list[str]:
    return [word for bit, word in SLOWED.items() if reasons & bit]


def _gpu(nvml, index: int) -> dict | None:
    device, clock, reasons = ctypes.c_void_p(), ctypes.c_uint(0), ctypes.c_ulonglong(0)
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
        return None
    known = nvml.nvmlDeviceGetClockInfo(device, SM_CLOCK, ctypes.byref(clock)) == 0
    # The older name of ...ClocksEventReasons: every driver has it.
    told = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device, ctypes.byref(reasons)) == 0
    return {"sm_mhz": clock.value if known else None, "slowed": slowed(reasons.value) if told else []}


@cache
def _library():
    """The library after nvmlInit, or None."""
    try:
        library = ctypes.CDLL("nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None
