"""A target with a GPU and TensorRT, on this machine: the driver, the packages and their versions are doubles, all else is as on a device.

Its Python is a script that puts a folder of packages in front, so that the same process is started directly or through ssh.
"""

import importlib.util
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = "10.9.0.34"
AVAILABLE = importlib.util.find_spec("tensorrt_rtx_bindings") is not None  # the double is made from it
DRIVER = """
import ctypes, importlib.util
real = ctypes.CDLL
def library(name, *given, **more):
    if name != "libcuda.so.1":
        return real(name, *given, **more)
    spec = importlib.util.spec_from_file_location("nvinfer_double", {double!r})
    double = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(double)
    return double.Driver()
ctypes.CDLL = library
"""
TENSORRT = """
import importlib.util, sys
import tensorrt_rtx_bindings
spec = importlib.util.spec_from_file_location("nvinfer_double", {double!r})
double = importlib.util.module_from_spec(spec)
spec.loader.exec_module(double)
memory = double.Memory()
sys.modules.update(double.cuda_python(memory))
sys.modules["tensorrt"] = double.module(tensorrt_rtx_bindings, {version!r}, "GPU A", memory)
"""


def python(folder: Path, tensorrt: bool = True) -> str:
    """The path of a Python that has such a GPU, and TensorRT or not."""
    site, double = folder / "site", str(Path(__file__).with_name("nvinfer_double.py"))
    site.mkdir()
    (site / "sitecustomize.py").write_text(DRIVER.format(double=double))
    if tensorrt:
        (site / "tensorrt.py").write_text(TENSORRT.format(double=double, version=VERSION))
        for name, version in (("tensorrt", VERSION), ("cuda-python", "12.9.0")):
            info = site / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(site))} exec {shlex.quote(sys.executable)} "$@"\n')
    script.chmod(0o755)
    return str(script)
