"""Opens a plan in TensorRT (10.9 or newer) or TensorRT-RTX and runs it, with cuda-python or pycuda, whichever is there.

It needs nothing else of Stillhouse: a bundle carries this very file, and `stages/engines/_nvinfer.py` runs its engines through it.
"""

import ctypes
import hashlib
import importlib
import json
import statistics
import weakref
from pathlib import Path
from typing import Any

IMAGE, CLASSMAP = "image", "classmap"
MODULES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
LOGGERS = {}  # module -> its logger: TensorRT keeps the first one of a process and ignores every other


class Unfit(Exception):
    """This machine cannot run the engine as it was measured."""


def load(folder: Path, settings: dict):
    """A function from uint8 (1, H, W, 3) to uint8 (1, H, W). A plan that build_tensorrt.py made for this machine goes first."""
    if not has_driver():
        raise Unfit("this engine runs on an NVIDIA GPU, and the driver shows none on this machine")
    trt, plan = imported(settings["kind"]), folder / "engine.plan"
    content = plan.read_bytes()
    if (folder / "rebuilt.json").is_file():
        said, content = json.loads((folder / "rebuilt.json").read_text(encoding="utf-8")), (folder / "rebuilt.plan").read_bytes()
        if said["plan"] != hashlib.sha256(content).hexdigest():
            raise Unfit("rebuilt.plan is not what build_tensorrt.py wrote: run it again")
    try:
        return Runner(trt, content, memory_of(settings["memory"]), logger(trt), settings.get("version_compatible", False))
    except Unfit as unfit:
        raise Unfit(f"{unfit}. For this machine: python build_tensorrt.py") from None


def imported(kind: str) -> Any:
    """The module of TensorRT, or of TensorRT-RTX, whose meta package may be absent beside its bindings."""
    *others, last = MODULES[kind]
    for name in others:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    return importlib.import_module(last)


def has_driver() -> bool:
    """Asked before anything of TensorRT is made: without a driver its runtime ends the process when it is taken down."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def logger(trt: Any) -> Any:
    """The logger of this module; `said` holds (severity, text) of all it was told but the endless VERBOSE."""
    if trt not in LOGGERS:

        class Log(trt.ILogger):
            def __init__(self):
                trt.ILogger.__init__(self)
                self.said = []

            def log(self, severity, text):
                if severity.name != "VERBOSE":
                    self.said.append((severity.name, str(text)))

        LOGGERS[trt] = Log()
    return LOGGERS[trt]


class Runner:
    """An engine with buffers for its largest batch. Called with uint8 (B, H, W, 3) it gives uint8 (B, H, W)."""

    def __init__(self, trt: Any, plan: bytes, memory: Any, log: Any, host_code: bool = False):
        self.trt, self.memory, before = trt, memory, len(log.said)
        self.runtime = trt.Runtime(log)
        if host_code:  # a version-compatible plan brings the runtime it was built with, and that is code
            self.runtime.engine_host_code_allowed = True
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise Unfit(
                f"{trt.__name__} {trt.__version__} does not take this plan here: {errors(log.said[before:]) or 'it does not say why'}"
            )
        names = {self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)}
        if names != {IMAGE, CLASSMAP}:
            raise Unfit(f"this plan speaks of {', '.join(sorted(names))}, not of {IMAGE} and {CLASSMAP}")
        least, _, most = (tuple(shape) for shape in self.engine.get_tensor_profile_shape(IMAGE, 0))
        self.batch, self.size = (least[0], most[0]), most[1:3]
        self.context, self.stream = self._context(), memory.stream()
        pixels = most[0] * most[1] * most[2]
        self.near, self.far = (memory.pinned(3 * pixels), memory.pinned(pixels)), (Device(memory, 3 * pixels), Device(memory, pixels))

    def __call__(self, images):
        shape = self._fitting(images)
        (image, classmap), (image_there, classmap_there) = self.near, self.far
        count = images.size // 3
        image[: images.size] = images.reshape(-1)
        self.memory.upload(image_there.pointer, image[: images.size], self.stream)
        self._enqueue(self.context, shape, self.far)
        self.memory.download(classmap[:count], classmap_there.pointer, self.stream)
        self.memory.synchronize(self.stream)
        return classmap[:count].reshape(shape[:3]).copy()

    def bind(self, images, watched: Any = None):
        """Puts the images on the device; each call of what is returned runs the engine alone, to its end."""
        shape, context = self._fitting(images), self._context()
        if watched is not None:
            context.profiler = watched
        there = Device(self.memory, images.size), Device(self.memory, images.size // 3)
        near = self.memory.pinned(images.size)
        near[:] = images.reshape(-1)
        self.memory.upload(there[0].pointer, near, self.stream)
        self.memory.synchronize(self.stream)

        def run():
            self._enqueue(context, shape, there)
            self.memory.synchronize(self.stream)

        return run

    def profiled(self, images, runs: int = 20) -> dict:
        """Milliseconds on the device: of whole runs, between events and without a profiler; then of each layer, means over as many runs."""
        run, start, end, whole = self.bind(images), self.memory.event(), self.memory.event(), []
        for _ in range(runs):
            self.memory.record(start, self.stream)
            run()
            self.memory.record(end, self.stream)
            whole.append(self.memory.elapsed_ms(start, end))
        times = {}
        run = self.bind(images, profiler(self.trt, times))
        for _ in range(runs):
            run()
        return {"runs": runs, "ms": statistics.median(whole), "layers": [{"name": n, "ms": sum(t) / runs} for n, t in times.items()]}

    def layers(self) -> Any:
        """What the engine consists of after fusing, as its inspector tells it."""
        return json.loads(self.engine.create_engine_inspector().get_engine_information(self.trt.LayerInformationFormat.JSON))

    def insight(self, runs: int = 20) -> str:
        """JSON of its layers, and of what they take."""
        import numpy as np

        profile = self.profiled(np.zeros((self.batch[0], *self.size, 3), np.uint8), runs)
        return json.dumps({"layers": self.layers(), "profile": profile}, indent=1) + "\n"

    def _context(self) -> Any:
        context = self.engine.create_execution_context()
        if context is None:
            raise Unfit("the engine gives no execution context: the GPU's memory does not hold what it needs to run")
        context.nvtx_verbosity = self.trt.ProfilingVerbosity.NONE  # the plan's detailed layer names would cost time in every run
        return context

    def _fitting(self, images) -> tuple:
        least, most = self.batch
        if not least <= len(images) <= most or tuple(images.shape[1:]) != (*self.size, 3):
            raise ValueError(f"it was built for {least} to {most} images of {list(self.size)}")
        return tuple(images.shape)

    def _enqueue(self, context: Any, shape: tuple, there: tuple) -> None:
        taken = context.set_input_shape(IMAGE, shape)
        for name, device in ((IMAGE, there[0]), (CLASSMAP, there[1])):
            taken = taken and context.set_tensor_address(name, device.pointer)
        if not taken or not context.execute_async_v3(self.memory.handle(self.stream)):
            raise RuntimeError(f"the engine did not start on images of {list(shape)}")


def profiler(trt: Any, times: dict) -> Any:
    """Adds to `times` {layer: [milliseconds]} what each layer takes in each run."""

    class Profiler(trt.IProfiler):
        def __init__(self):
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer, ms):
            times.setdefault(layer, []).append(ms)

    return Profiler()


def errors(said: list) -> str:
    return " ".join("; ".join(text for severity, text in said if severity in ("ERROR", "INTERNAL_ERROR")).split())[:600]


class Device:
    """Bytes of the GPU's memory, given back when nobody holds this any more, or with the whole process at its end."""

    def __init__(self, memory: Any, size: int):
        self.pointer = memory.alloc(size)
        weakref.finalize(self, memory.free, self.pointer).atexit = False


def memory_of(name: str) -> Any:
    """How device memory is reached. `auto` takes what is installed, cuda-python first; a name never gives another."""
    if name != "auto":
        return MEMORIES[name]()
    for kind in MEMORIES.values():
        try:
            return kind()
        except ImportError:
            continue
    raise ImportError("neither cuda-python nor pycuda can be imported")


class CudaPython:
    name = "cuda-python"

    def __init__(self):
        self.cuda = importlib.import_module("cuda.bindings.runtime")
        self._done(self.cuda.cudaSetDevice(0))
        kinds = self.cuda.cudaMemcpyKind
        self.there, self.back = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost

    def alloc(self, size: int) -> int:
        return int(self._done(self.cuda.cudaMalloc(size)))

    def free(self, pointer: int) -> None:
        self._done(self.cuda.cudaFree(pointer))

    def pinned(self, size: int):
        """uint8 (size,) in memory that the GPU copies from and to by itself."""
        import numpy as np

        pointer = int(self._done(self.cuda.cudaMallocHost(size)))
        block = (ctypes.c_uint8 * size).from_address(pointer)
        weakref.finalize(block, lambda: self._done(self.cuda.cudaFreeHost(pointer))).atexit = False
        return np.frombuffer(block, np.uint8)

    def upload(self, pointer: int, array, stream) -> None:
        self._done(self.cuda.cudaMemcpyAsync(pointer, array.ctypes.data, array.nbytes, self.there, stream))

    def download(self, array, pointer: int, stream) -> None:
        self._done(self.cuda.cudaMemcpyAsync(array.ctypes.data, pointer, array.nbytes, self.back, stream))

    def stream(self):
        return self._done(self.cuda.cudaStreamCreate())

    def handle(self, stream) -> int:
        return int(stream)

    def synchronize(self, stream) -> None:
        self._done(self.cuda.cudaStreamSynchronize(stream))

    def event(self):
        return self._done(self.cuda.cudaEventCreate())

    def record(self, event, stream) -> None:
        self._done(self.cuda.cudaEventRecord(event, stream))

    def elapsed_ms(self, start, end) -> float:
        self._done(self.cuda.cudaEventSynchronize(end))
        return self._done(self.cuda.cudaEventElapsedTime(start, end))

    def _done(self, answer: tuple) -> Any:
        """Every call answers (error,) or (error, value)."""
        error, *values = answer
        if error != self.cuda.cudaError_t.cudaSuccess:
            raise RuntimeError(f"CUDA: {self.cuda.cudaGetErrorString(error)[1].decode()}")
        return values[0] if values else None


class PyCuda:
    """In the device's primary context, which TensorRT and torch use too: a context of its own would hide their memory from each other."""

    name = "pycuda"

    def __init__(self):
        importlib.import_module("pycuda.autoprimaryctx")
        self.cuda = importlib.import_module("pycuda.driver")
        self.held = {}  # pointer -> its allocation, which pycuda frees when it is dropped

    def alloc(self, size: int) -> int:
        allocation = self.cuda.mem_alloc(size)
        self.held[int(allocation)] = allocation
        return int(allocation)

    def free(self, pointer: int) -> None:
        self.held.pop(pointer).free()

    def pinned(self, size: int):
        import numpy as np

        return self.cuda.pagelocked_empty(size, np.uint8)

    def upload(self, pointer: int, array, stream) -> None:
        self.cuda.memcpy_htod_async(pointer, array, stream)

    def download(self, array, pointer: int, stream) -> None:
        self.cuda.memcpy_dtoh_async(array, pointer, stream)

    def stream(self):
        return self.cuda.Stream()

    def handle(self, stream) -> int:
        return stream.handle

    def synchronize(self, stream) -> None:
        stream.synchronize()

    def event(self):
        return self.cuda.Event()

    def record(self, event, stream) -> None:
        event.record(stream)

    def elapsed_ms(self, start, end) -> float:
        end.synchronize()
        return start.time_till(end)


MEMORIES = {"cuda-python": CudaPython, "pycuda": PyCuda}
