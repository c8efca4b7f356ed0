"""A busy machine is told from a quiet one by what its counters gained meanwhile, and what it does not tell is not judged."""

from types import SimpleNamespace

import pytest

from stages.evidence import Evidence
from stages.measure import latency, nvml, quiet
from stages.validate import judged

QUIET = {"seconds": 10.0, "cores": 2, "waited": 0.03, "throttled": 0, "stolen": 0.0, "running": 0.1, "gpu": None}
GPU = {"sm_mhz": [1980, 1980], "slowed": []}


def write(root, waited, throttled, stolen, running, ticks, mhz=None):
    files = {
        "proc/pressure/cpu": f"some avg10=99.00 avg60=99.00 avg300=99.00 total={waited}\nfull avg10=0.00 total=7\n",
        "proc/stat": f"cpu  {ticks} 0 0 0 0 0 0 {stolen} 9 9\ncpu0 1 2 3\n",
        "proc/loadavg": f"1.50 3.03 2.42 {running}/106 11723\n",
        "proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/a/b\n0::/c\n",
        "sys/fs/cgroup/cpu,cpuacct/a/cpu.stat": f"nr_periods 9\nnr_throttled {throttled}\n",
        "sys/fs/cgroup/c/cpu.stat": "usage_usec 5\nnr_throttled 4\n",
        "proc/cpuinfo": "cpu MHz\t\t: 2596.15\ncpu MHz\t\t: 2600.00\n",
    }
    for k, value in enumerate(mhz or []):
        files[f"sys/devices/system/cpu/cpu{k}/cpufreq/scaling_cur_freq"] = f"{value}\n"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_what_is_seen_is_what_the_counters_gained_meanwhile(tmp_path, monkeypatch):
    clock = iter((100.0, 110.0))
    monkeypatch.setattr(quiet.time, "monotonic", lambda: next(clock))
    clocks = iter((1980, 1800))
    watch = quiet.Watch(tmp_path, lambda: {"sm_mhz": next(clocks), "slowed": ["power cap"]})
    write(tmp_path, waited=5_000_000, throttled=2, stolen=50, running=3, ticks=1000)
    watch.begin()
    watch.turn("a", on_gpu=True)
    write(tmp_path, waited=6_000_000, throttled=2, stolen=60, running=1, ticks=1500, mhz=[3_100_000, 800_000])
    watch.turn("b")
    write(tmp_path, waited=8_000_000, throttled=5, stolen=150, running=2, ticks=1900)
    watch.turn("a", on_gpu=True)
    seen = watch.end()
    assert (seen["seconds"], seen["waited"], seen["throttled"], seen["stolen"]) == (10.0, 0.3, 3, 0.1)
    assert seen["running"] == 1.0 and seen["order"] == ["a", "b", "a"] and seen["load"] == [1.5, 1.5]  # 2, 0 and 1 besides this one
    assert seen["mhz"] == [800.0, 3100.0]  # /proc/cpuinfo where there is nothing better
    assert seen["gpu"] == {"sm_mhz": [1800, 1980], "slowed": ["power cap"]}  # looked at only after turns of a, which runs on it


def test_a_machine_that_tells_nothing_is_not_judged(tmp_path):
    watch = quiet.Watch(tmp_path, lambda: None)
    watch.begin()
    watch.turn("a", on_gpu=True)
    seen = watch.end()
    assert [seen[key] for key in ("waited", "throttled", "stolen", "running", "mhz")] == [None] * 5 and seen["gpu"] is None
    assert quiet.reasons(seen, {}) == []


def test_this_machine_can_be_watched():
    watch = quiet.Watch()
    watch.begin()
    watch.turn("a")
    seen = watch.end()
    assert seen["cores"] >= 1 and all(isinstance(text, str) for text in quiet.reasons(seen, {}))


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"waited": 0.21}, "21% of the time somebody waited for a core (at most 20%)"),
        ({"throttled": 3}, "stopped this process's group 3 times"),
        ({"stolen": 0.06}, "6% of the processor to other guests"),
        ({"running": 1.2}, "1.2 other programs wanted to run at a time, and there are 2 cores"),
    ],
)
def test_each_reason_alone_makes_times_inconclusive(changes, word):
    assert quiet.reasons(QUIET, {}) == quiet.reasons(QUIET | {"waited": 0.2, "running": 1.0, "stolen": 0.05}, {}) == []
    (found,) = quiet.reasons(QUIET | changes, {})
    assert word in found


def test_a_gpu_counts_only_where_an_engine_ran_on_it():
    steady = {"engine": [5.0, 5.05, 4.95, 5.0]}
    slow = QUIET | {"gpu": {"sm_mhz": [1700, 1980], "slowed": ["too hot", "power cap"]}}
    assert quiet.reasons(slow, {}) == [] == quiet.reasons(QUIET | {"gpu": GPU}, steady)
    assert quiet.reasons(slow, steady) == [
        "the GPU was slowed down: too hot, power cap",
        "the clock of the GPU went from 1700 to 1980 MHz (at most 2% apart)",
    ]
    assert quiet.reasons(QUIET | {"gpu": GPU}, {"engine": [5.0, 5.0, 6.0]}) == ["the times of engine vary by 10.8% (at most 2.5%)"]


def test_what_holds_a_clock_back_is_told_in_words():
    assert nvml.slowed(0x1) == [] == nvml.slowed(0x2 | 0x10 | 0x100)  # idle, or set by somebody: no slowdown
    assert nvml.slowed(0x4 | 0x40) == ["power cap", "too hot (hardware)"]
    assert nvml.state() is None or nvml.state().keys() == {"sm_mhz", "slowed"}


class Driver:
    """Two GPUs: what CUDA calls 0 lies at the bus where NVML counts 1."""

    def __init__(self, answer=0):
        self.answer = answer

    def cuDeviceGet(self, device, ordinal):
        device._obj.value = ordinal
        return self.answer

    def cuDeviceGetPCIBusId(self, text, size, device):
        text.value = [b"0000:65:00.0", b"0000:17:00.0"][device.value]
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, where, device):
        device._obj.value = {b"0000:17:00.0": 1, b"0000:65:00.0": 2}[where]
        return 0

    def nvmlDeviceGetClockInfo(self, device, kind, clock):
        clock._obj.value = {1: 210, 2: 1980}[device.value]
        return 0

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device, reasons):
        reasons._obj.value = 0x4
        return 0


def test_the_gpu_that_is_watched_is_the_one_that_cuda_calls_0(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(nvml, "_library", lambda: driver)
    monkeypatch.setattr(nvml.machine, "_cuda", lambda: driver)
    assert nvml.state() == {"sm_mhz": 1980, "slowed": ["power cap"]}
    monkeypatch.setattr(nvml.machine, "_cuda", lambda: Driver(answer=101))
    assert nvml.state() is None


def test_what_was_timed_on_a_target_is_not_judged_by_this_machine():
    class Busy:
        order = ["far", "near"]

        def end(self):
            return QUIET | {"waited": 0.5, "order": self.order}

    job = SimpleNamespace(target=SimpleNamespace(name="device"))
    times = {"far": {"on_gpu": True, "samples_engine_ms": [5.0, 5.0, 6.0]}, "near": {"on_gpu": False, "samples_engine_ms": [5.0, 9.0]}}
    found = judged(Busy(), times, ["far"], job)
    busy, unsteady = "in 50% of the time somebody waited for a core (at most 20%)", "the times of far vary by 10.8% (at most 2.5%)"
    assert quiet.reasons_of(found, "near") == [busy] and quiet.reasons_of(found, "far") == [unsteady]
    assert found["reasons"] == [busy, unsteady] and not found["valid"]
    assert [Evidence({"conditions": found}).noise(name) for name in ("near", "far")] == [busy, unsteady]
    alone = judged(Busy(), {"far": times["near"]}, ["far"], job)
    assert alone == {"valid": True, "reasons": [], "order": ["far", "near"], "not_watched": alone["not_watched"]}
    assert Evidence({"conditions": alone}).noise("far") is None


def test_the_gpu_is_looked_at_only_after_turns_of_what_runs_on_it_here(tmp_path, monkeypatch):
    class Child:
        def __init__(self, model, *_):
            self.name = model.name
            self.ran = {"provider": "CPU" if self.name == "cpu" else "CUDAExecutionProvider", "threads": 1}

        def timed(self, runs):
            return {key: [1.0] * runs for key in ("image_ms", "image_cpu_ms", "engine_ms", "engine_cpu_ms")}

        opened = warm = end = lambda self: None

    looked = []
    monkeypatch.setattr(latency, "Child", Child)
    models = [SimpleNamespace(name=name, facts={"foreign": {}} if name == "far" else {}) for name in ("cpu", "gpu", "far")]
    watch = quiet.Watch(tmp_path, lambda: looked.append(watch.order[-1]) or {"sm_mhz": 1980, "slowed": []})
    found = latency.measure(models, [], None, tmp_path, runs=2, warmup_ms=0, threads=1, remote=Child, watch=watch)
    assert looked == ["gpu", "gpu"] and len(watch.order) == 6 and watch.end()["gpu"] == GPU
    assert {name: one["on_gpu"] for name, one in found.items()} == {"cpu": False, "gpu": True, "far": True}
