"""What the GPU was doing while time was measured: its SM clock and why it was held back, through the driver's own library (ctypes)."""

import ctypes
import os
from functools import cache

from stages import machine

SM_CLOCK = 1  # NVML_CLOCK_SM
SLOWED = {  # bits of nvmlDeviceGetCurrentClocksEventReasons that make a GPU slower than it could be (nvml.h)
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "too hot",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}


def state() -> dict | None:
    """{"sm_mhz", "slowed": [...]} of the GPU that engines run on, CUDA's 0; None without driver or GPU."""
    nvml, where = _library(), machine.bus_id()
    return None if nvml is None or where is None else _gpu(nvml, where)


def slowed(reasons: int) -> list[str]:
    return [word for bit, word in SLOWED.items() if reasons & bit]


def _gpu(nvml, where: str) -> dict | None:
    device, clock, reasons = ctypes.c_void_p(), ctypes.c_uint(0), ctypes.c_ulonglong(0)
    if nvml.nvmlDeviceGetHandleByPciBusId_v2(where.encode(), ctypes.byref(device)) != 0:
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
