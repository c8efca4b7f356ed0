"""Facts about the machine come from the system, at once, and without torch."""

import ctypes
import json
import subprocess
import sys
from importlib import metadata

import pytest

from stages import machine


@pytest.fixture
def fresh():
    """Facts are kept for the life of a process; these tests change what is under them."""
    kept = [value for value in vars(machine).values() if hasattr(value, "cache_clear")]
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()


def test_facts_are_found_fast_without_torch_or_numpy_and_survive_json():
    code = "import sys, time, json; b = time.process_time(); from stages import machine; f = machine.facts(); t = time.process_time() - b; "
    code += "print(json.dumps([f, t, [m for m in ('torch', 'numpy') if m in sys.modules]]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, took, heavy = json.loads(done.stdout)
    assert took < 0.2 and heavy == []
    assert found["cores"] >= 1 and found["memory_gb"] > 0.1 and found["cpu"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_instructions_are_those_the_system_lists(monkeypatch, fresh):
    monkeypatch.setattr(machine, "_cpuinfo", lambda: {"model name": "A CPU", "flags": "sse avx2 avx512_bf16 hypervisor"})
    assert machine.cpu_name() == "A CPU" and machine.instructions() == ["avx2", "avx512_bf16"] and machine.has_bf16()
    machine.instructions.cache_clear()
    monkeypatch.setattr(machine, "_cpuinfo", lambda: {"Features": "asimd i8mm"})  # as ARM spells it
    assert machine.instructions() == ["asimd", "i8mm"] and not machine.has_bf16()


class Driver:
    """What the NVIDIA driver's library answers with one GPU."""

    cuInit = staticmethod(lambda flags: 0)
    cuDeviceGet = staticmethod(lambda device, index: 0)

    @staticmethod
    def cuDeviceGetCount(count):
        count._obj.value = 1
        return 0

    @staticmethod
    def cuDeviceGetName(name, size, device):
        name.value = b"A GPU"
        return 0

    @staticmethod
    def cuDeviceTotalMem_v2(total, device):
        total._obj.value = 16_000_000_000
        return 0

    @staticmethod
    def cuDeviceGetAttribute(value, which, device):
        value._obj.value = {75: 8, 76: 7}[which]
        return 0

    @staticmethod
    def cuDriverGetVersion(number):
        number._obj.value = 12040
        return 0


def test_a_gpu_is_described_as_its_driver_does(monkeypatch, fresh):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver)
    assert machine.has_device()
    assert machine.gpus() == [{"name": "A GPU", "capability": "8.7", "memory_gb": 16.0}]
    assert machine.facts()["driver"] == "12.4"


def test_without_a_driver_or_with_one_that_fails_there_is_no_device(monkeypatch, fresh):
    def absent(name):
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert not machine.has_device() and machine.facts()["driver"] is None
    for function in (machine.gpus, machine._cuda, machine.facts):
        function.cache_clear()

    class Broken(Driver):
        cuInit = staticmethod(lambda flags: 100)  # CUDA_ERROR_NO_DEVICE

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Broken)
    assert not machine.has_device() and machine.gpus() == []


def test_versions_are_those_installed_and_absence_is_said():
    assert machine.version("numpy") == f"numpy {metadata.version('numpy')}"
    assert machine.version("no-such-distribution", "numpy") == machine.version("numpy")
    assert machine.version("no-such-distribution") == "missing"
