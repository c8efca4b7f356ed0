"""What pyproject.toml cannot say: the compiled CPU variants are one library, made once for each kind of vectors a machine may have.

They are plain libraries, found by kernels/native.py. Without a C++ compiler the rest installs all the same.
"""

import platform
from pathlib import Path

from setuptools import Extension, setup

HERE = Path(__file__).parent
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-pthread"]
AVX2, AVX512 = ["-mavx2", "-mfma"], ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]  # what torch means by these names
LIBRARIES = {"_cpu": []} | ({"_cpu_avx2": AVX2, "_cpu_avx512": AVX512} if platform.machine().lower() in ("x86_64", "amd64") else {})

setup(
    ext_modules=[
        Extension(
            f"kernels.{name}",
            sources=sorted(str(path.relative_to(HERE)) for path in HERE.glob("kernels/*/cpu.cpp")),
            depends=["kernels/cpu.h", "kernels/upsample_argmax/argmax.c"],
            language="c++",
            extra_compile_args=FLAGS + vectors,
            extra_link_args=["-pthread"],
            optional=True,
        )
        for name, vectors in LIBRARIES.items()
    ]
)
