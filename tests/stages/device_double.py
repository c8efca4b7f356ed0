"""A target with a GPU and TensorRT, on this machine: the driver, the packages and their versions are doubles, all else is as on a device.

Its Python is a script that puts a folder of packages in front, so that the same process is started directly or through ssh.
"""

import functools
import importlib.util
import shlex
import sys
from pathlib import Path

from tests.stages import small_line

VERSION = "10.9.0.34"
AVAILABLE = importlib.util.find_spec("tensorrt_rtx_bindings") is not None  # the double is made from it
LOADED = """
import importlib.util, sys
def loaded(name):
    spec = importlib.util.spec_from_file_location(name, {folder!r} + name + ".py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
"""
DRIVER = """
import ctypes
real = ctypes.CDLL
def library(name, *given, **more):
    return loaded("cuda_double").Driver() if name == "libcuda.so.1" else real(name, *given, **more)
ctypes.CDLL = library
"""
TENSORRT = """
import tensorrt_rtx_bindings
memories, tensorrt = loaded("cuda_double"), loaded("nvinfer_double")
memory = memories.Memory()
sys.modules.update(memories.cuda_python(memory))
sys.modules["tensorrt"] = tensorrt.module(tensorrt_rtx_bindings, {version!r}, "GPU A", memory)
"""


@functools.cache
def line(base: Path) -> tuple:
    """(data set, student, its ONNX file), made once for all tests of targets. `base`: pytest's own folder."""
    folder = base / "line_of_targets"
    folder.mkdir()
    dataset = small_line.data(folder, val=2)
    student = small_line.checkpoint(folder, dataset)
    return dataset, student, small_line.exported(folder, dataset, student)


@functools.cache
def compiled(base: Path) -> Path:
    """Where what targets compile is kept for all tests."""
    folder = base / "cache_of_targets"
    folder.mkdir(mode=0o700)
    return folder


def python(folder: Path, tensorrt: bool = True) -> str:
    """The path of a Python that has such a GPU, and TensorRT or not."""
    site, loading = folder / "site", LOADED.format(folder=f"{Path(__file__).parent}/")
    site.mkdir()
    (site / "sitecustomize.py").write_text(loading + DRIVER)
    if tensorrt:
        (site / "tensorrt.py").write_text(loading + TENSORRT.format(version=VERSION))
        for name, version in (("tensorrt", VERSION), ("cuda-python", "12.9.0")):
            info = site / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(site))} exec {shlex.quote(sys.executable)} "$@"\n')
    script.chmod(0o755)
    return str(script)
