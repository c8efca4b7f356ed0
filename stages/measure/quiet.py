"""Whether a machine was quiet enough for its times to mean anything: what else ran, waited or was held back while they were measured.

Counters are read before and after and compared over exactly that time, since averages of the system (load, avg10) still hold what ran
before, our own training for instance. What a system does not tell is None, and is not judged.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages import machine
from stages.measure import nvml

WAITED = 0.20  # share of the time in which somebody waited for a core: /proc/pressure/cpu, "some"
STOLEN = 0.05  # share of processor time that the host gave to other guests; our own figure
CLOCK_SPREAD = 0.02  # of a GPU's SM clock, largest against smallest
SETTLED = 0.005  # seconds until the threads of a runtime have given up waiting for more work in a loop
SPREAD = 0.025  # standard deviation of a GPU engine's times against their mean; trtexec's rule


class Watch:
    """Looks at the machine from `begin` to `end`, and after every turn in between. `root`: where proc and sys lie."""

    def __init__(self, root: Path = Path("/"), gpu: Callable[[], dict | None] = nvml.state):
        self.root, self.gpu = root, gpu
        self.order: list[str] = []  # whose turn it was
        self.running: list[int] = []
        self.mhz: list[float] = []
        self.of_gpu: list[dict] = []

    def begin(self) -> None:
        self.before, self.since = self._counters(), time.monotonic()

    def turn(self, name: str, on_gpu: bool = False) -> None:
        """After a turn of `name`: its process waits now, so that whatever else wants to run is somebody else's. `on_gpu`: of this machine;
        after other turns its clock tells only that it rested."""
        self.order.append(name)
        time.sleep(SETTLED)
        if (running := self._running()) is not None:
            self.running.append(running)
        self.mhz += self._mhz()
        if on_gpu and (state := self.gpu()) is not None:
            self.of_gpu.append(state)

    def end(self) -> dict[str, Any]:
        """What was seen."""
        seconds, after = time.monotonic() - self.since, self._counters()
        grown = {key: None if None in (a, after[key]) else after[key] - a for key, a in self.before.items()}
        waited, (stolen, ticks) = grown["waited_us"], (grown["stolen"], grown["ticks"])
        return {
            "seconds": round(seconds, 3),
            "cores": machine.cores(),
            "waited": None if waited is None else round(waited / 1e6 / max(seconds, 1e-9), 4),
            "throttled": grown["throttled"],
            "stolen": round(stolen / ticks, 4) if ticks else None,
            "running": round(sum(self.running) / len(self.running), 2) if self.running else None,
            "load": [self.before["load"], after["load"]],
            "mhz": [min(self.mhz), max(self.mhz)] if self.mhz else None,
            "gpu": _over_time(self.of_gpu) if self.of_gpu else None,
            "order": self.order,
        }

    def _counters(self) -> dict[str, float | None]:
        lines = self._lines("proc/pressure/cpu")
        waited = next((float(word[6:]) for line in lines if line.startswith("some") for word in line.split() if word[:6] == "total="), None)
        ticks = next(([int(n) for n in line.split()[1:9]] for line in self._lines("proc/stat") if line.startswith("cpu ")), None)
        load = next((float(line.split()[0]) for line in self._lines("proc/loadavg")), None)
        whole = (sum(ticks), ticks[7]) if ticks and len(ticks) == 8 else (None, None)
        return {"waited_us": waited, "ticks": whole[0], "stolen": whole[1], "throttled": self._throttled(), "load": load}

    def _throttled(self) -> int | None:
        """How often a limit on processor time has stopped this process's group or one it lies in."""
        counts = []
        for line in self._lines("proc/self/cgroup"):
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            folder = Path(controllers) if controllers else Path()
            parts = Path(path.lstrip("/")).parts
            for depth in range(len(parts) + 1):
                stat = self._lines(Path("sys/fs/cgroup", folder, *parts[:depth], "cpu.stat"))
                counts += [int(text.split()[1]) for text in stat if text.startswith("nr_throttled ")]
        return sum(counts) if counts else None

    def _running(self) -> int | None:
        """Programs that run or want to, without this one."""
        return next((max(0, int(line.split()[3].split("/")[0]) - 1) for line in self._lines("proc/loadavg")), None)

    def _mhz(self) -> list[float]:
        files = sorted((self.root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        if files:
            return [round(int(text) / 1000, 1) for file in files for text in self._lines(file)[:1]]
        return [round(float(line.split(":")[1]), 1) for line in self._lines("proc/cpuinfo") if line.startswith("cpu MHz")]

    def _lines(self, path: str | Path) -> list[str]:
        try:
            return (self.root / path).read_text().splitlines()
        except OSError:
            return []


def reasons(seen: dict[str, Any], on_gpu: dict[str, list[float]]) -> list[str]:
    """Why times measured meanwhile say nothing, one sentence each; [] on a quiet machine. `on_gpu`: engine times by model."""
    found = []
    if seen["waited"] is not None and seen["waited"] > WAITED:
        found.append(f"in {seen['waited']:.0%} of the time somebody waited for a core (at most {WAITED:.0%})")
    if seen["throttled"]:
        found.append(f"a limit on processor time stopped this process's group {seen['throttled']} times")
    if seen["stolen"] is not None and seen["stolen"] > STOLEN:
        found.append(f"the host gave {seen['stolen']:.0%} of the processor to other guests (at most {STOLEN:.0%})")
    if seen["running"] is not None and seen["running"] + 1 > seen["cores"]:
        found.append(f"{seen['running']:.1f} other programs wanted to run at a time, and there are {seen['cores']} cores")
    if on_gpu:
        found += _of_gpu(seen["gpu"]) if seen["gpu"] else []
        found += unsteady(on_gpu)
    return found


def unsteady(on_gpu: dict[str, list[float]]) -> list[str]:
    """What times on a GPU tell against themselves, wherever they were taken."""
    return [text for name, times in on_gpu.items() if (text := _of_times(name, times))]


def reasons_of(conditions: dict[str, Any] | None, model: str) -> list[str]:
    """Those of a measurement's reasons that speak of this model: the machine that was watched is not the one that timed a target's."""
    if not conditions:
        return []
    far = conditions.get("not_watched") or {"models": [], "reasons": []}
    return far["reasons"] if model in far["models"] else [text for text in conditions["reasons"] if text not in far["reasons"]]


def _over_time(states: list[dict]) -> dict[str, Any]:
    clocks = [one["sm_mhz"] for one in states if one["sm_mhz"] is not None]
    slowed = sorted({word for one in states for word in one["slowed"]})
    return {"sm_mhz": [min(clocks), max(clocks)] if clocks else None, "slowed": slowed}


def _of_gpu(gpu: dict[str, Any]) -> list[str]:
    found = [f"the GPU was slowed down: {', '.join(gpu['slowed'])}"] if gpu["slowed"] else []
    if gpu["sm_mhz"] and gpu["sm_mhz"][1] > gpu["sm_mhz"][0] * (1 + CLOCK_SPREAD):
        found.append(f"the clock of the GPU went from {gpu['sm_mhz'][0]} to {gpu['sm_mhz'][1]} MHz (at most {CLOCK_SPREAD:.0%} apart)")
    return found


def _of_times(name: str, times: list[float]) -> str | None:
    mean = sum(times) / len(times)
    spread = (sum((t - mean) ** 2 for t in times) / max(1, len(times) - 1)) ** 0.5 / mean if mean else 0.0
    return f"the times of {name} vary by {spread:.1%} (at most {SPREAD:.1%})" if spread > SPREAD else None
