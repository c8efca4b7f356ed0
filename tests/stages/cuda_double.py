"""A GPU's memory for tests, with the two packages that reach it: cuda-python and pycuda. Bytes are real, and work waits in its stream."""

import ctypes
import enum
import types

import numpy as np


class Memory:
    """The bytes of a device, at addresses that mean nothing here. Work waits in its stream until somebody waits for the stream."""

    def __init__(self):
        self.blocks, self.streams, self.next = {}, {}, 0x7000_0000_0000

    def alloc(self, size):
        self.next += 1 << 32
        self.blocks[self.next] = bytearray(b"\xee" * size)
        return self.next

    def read(self, pointer, size):
        assert size <= len(self.blocks[pointer]), "read beyond the block"
        return bytes(self.blocks[pointer][:size])

    def write(self, pointer, content):
        assert len(content) <= len(self.blocks[pointer]), "written beyond the block"
        self.blocks[pointer][: len(content)] = content

    def stream(self):
        self.streams[len(self.streams) + 1] = []
        return len(self.streams)

    def synchronize(self, stream):
        while self.streams[stream]:
            self.streams[stream].pop(0)()


class Driver:
    """libcuda.so.1 of a machine with one GPU."""

    def cuInit(self, flags):
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device, index):
        return 0

    def cuDeviceGetName(self, name, size, device):
        name.value = b"GPU A"
        return 0

    def cuDeviceTotalMem_v2(self, total, device):
        total._obj.value = 8_000_000_000
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 8, 76: 7}[attribute]  # compute capability, as on a Jetson Orin
        return 0

    def cuDriverGetVersion(self, number):
        number._obj.value = 12060
        return 0


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


def cuda_python(memory, most=1 << 30):
    """cuda.bindings.runtime as cuda-python 12.9 and 13 have it: every call answers a tuple that begins with the error."""
    cuda = types.ModuleType("cuda.bindings.runtime")
    cuda.cudaError_t, cuda.cudaMemcpyKind = Error, enum.IntEnum("cudaMemcpyKind", ["cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"])
    hosts, clock = {}, iter(range(1000))

    class Stream(int):
        pass

    def host(size):
        block = (ctypes.c_uint8 * size)()
        hosts[ctypes.addressof(block)] = block
        return Error.cudaSuccess, ctypes.addressof(block)

    def copy(to, source, size, kind, stream):
        assert isinstance(stream, Stream)
        if kind == cuda.cudaMemcpyKind.cudaMemcpyHostToDevice:
            memory.streams[stream].append(lambda: memory.write(to, ctypes.string_at(source, size)))
        else:
            memory.streams[stream].append(lambda: ctypes.memmove(to, memory.read(source, size), size))
        return (Error.cudaSuccess,)

    def done(act):
        def call(*given):
            act(*given)
            return (Error.cudaSuccess,)

        return call

    cuda.cudaSetDevice = done(lambda device: None)
    cuda.cudaMalloc = lambda n: (Error.cudaSuccess, memory.alloc(n)) if n <= most else (Error.cudaErrorMemoryAllocation, None)
    cuda.cudaFree, cuda.cudaFreeHost = done(memory.blocks.pop), done(hosts.pop)
    cuda.cudaMallocHost, cuda.cudaMemcpyAsync = host, copy
    cuda.cudaStreamCreate = lambda: (Error.cudaSuccess, Stream(memory.stream()))
    cuda.cudaStreamSynchronize = done(memory.synchronize)
    cuda.cudaEventCreate = lambda: (Error.cudaSuccess, {})
    cuda.cudaEventRecord = done(lambda event, stream: event.update(at=next(clock)))
    cuda.cudaEventSynchronize = done(lambda event: event["at"])
    cuda.cudaEventElapsedTime = lambda start, end: (Error.cudaSuccess, float(end["at"] - start["at"]))
    cuda.cudaGetErrorString = lambda error: (Error.cudaSuccess, b"out of memory")
    cuda.hosts = hosts
    bindings, top = types.ModuleType("cuda.bindings"), types.ModuleType("cuda")
    bindings.runtime, top.bindings = cuda, bindings
    return {"cuda": top, "cuda.bindings": bindings, "cuda.bindings.runtime": cuda}


def pycuda(memory):
    """pycuda.driver and the module that makes the primary context current."""
    top, driver, context = (types.ModuleType(name) for name in ("pycuda", "pycuda.driver", "pycuda.autoprimaryctx"))
    clock = iter(range(1000))

    class Allocation:
        def __init__(self, size):
            self.pointer = memory.alloc(size)

        def __int__(self):
            return self.pointer

        def free(self):
            del memory.blocks[self.pointer]

    class Stream:
        def __init__(self):
            self.handle = memory.stream()

        def synchronize(self):
            memory.synchronize(self.handle)

    class Event:
        def record(self, stream):
            self.at = next(clock)

        def synchronize(self):
            return self.at

        def time_till(self, end):
            return float(end.at - self.at)

    driver.mem_alloc, driver.Stream, driver.Event = Allocation, Stream, Event
    driver.pagelocked_empty = lambda shape, dtype: np.full(shape, 0xEE, dtype)
    driver.memcpy_htod_async = lambda to, source, stream: memory.streams[stream.handle].append(lambda: memory.write(to, source.tobytes()))

    def back(to, source, stream):
        memory.streams[stream.handle].append(lambda: np.copyto(to, np.frombuffer(memory.read(source, to.nbytes), np.uint8)))

    driver.memcpy_dtoh_async = back
    top.driver, top.autoprimaryctx = driver, context
    return {"pycuda": top, "pycuda.driver": driver, "pycuda.autoprimaryctx": context}
