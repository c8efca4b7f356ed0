"""TensorRT 10.x and 11.x for tests, made from what TensorRT-RTX is: its real builder and parser, and classes generated from its signatures.

What differs is taken from NVIDIA's documentation: in 10.x strong typing is a flag and weak typing's flags are still there (they must not be
touched), 11.x dropped both; timing caches belong to one version and device. Nothing that needs a GPU exists without one, so Runtime, engine
and context are generated: names, arguments and their types are those of the real signatures, whatever else is called fails. A plan holds
the ONNX file, and a context computes it with onnxruntime, in the memory that the tests' doubles of cuda-python and pycuda keep.
"""

import json
import re
import types

import numpy as np

FORBIDDEN = ("FP16", "INT8", "BF16", "FP8", "INT4", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS")
SIGNATURE = re.compile(r"(\w+)\(self: [\w.]+((?:, [^()]*(?:\([^()]*\))?[^()]*)?)\) -> ")
MESSAGE = "Tactic Device request: 15000MB Available: 7000MB. Device memory is insufficient to use tactic."


class Untouched(type):
    """An enumeration whose FORBIDDEN members may be seen, and not used."""

    def __getattr__(cls, name):
        if name in FORBIDDEN or (name == "STRONGLY_TYPED" and cls.gone):
            raise AssertionError(f"{cls.__name__}.{name} was touched")
        if name in cls.added:
            return cls.added[name]
        return getattr(cls.real, name)

    @property
    def __members__(cls):
        return {**cls.real.__members__, **cls.added}


def flags(real, added, gone=False):
    return Untouched(real.__name__, (), {"real": real, "added": added, "gone": gone})


def signature(member):
    """[(argument, type)] of each overload of a bound C++ function, from its docstring."""
    found = []
    for _, given in SIGNATURE.findall(member.__doc__ or ""):
        arguments = [part.split(": ", 1) for part in re.findall(r"(\w+: [^,]+(?:\[[^\]]*\])?)", given)]
        found.append([(name, kind.split(" = ")[0].split(".")[-1].strip(), "=" in kind) for name, kind in arguments])
    return found


TAKEN = {"str": str, "SupportsInt": (int, np.integer), "bool": bool, "Buffer": (bytes, bytearray, memoryview), "tuple": tuple}


def fits(overload, given):
    needed = [entry for entry in overload if not entry[2]]
    if not len(needed) <= len(given) <= len(overload):
        return False
    pairs = ((value, kind) for value, (_, kind, _) in zip(given, overload, strict=False))
    return all(isinstance(value, TAKEN[kind]) if kind in TAKEN else type(value).__name__ == kind for value, kind in pairs)


def generated(real, played):
    """A class with the members of `real` and no others. `played`: what those that are used do; the rest exists and must not be called."""

    class Double:
        def __init__(self, **state):
            self.__dict__.update(state)

        def __setattr__(self, name, value):
            assert isinstance(getattr(real, name, None), property), f"{real.__name__} has no property {name}"
            self.__dict__[name] = value

        def __getattr__(self, name):
            member = getattr(real, name, None)
            if member is None:
                raise AttributeError(f"{real.__name__} has no {name}")
            assert name in played, f"the double of {real.__name__} does not play {name}"
            if isinstance(member, property):
                return played[name](self)

            def call(*given):
                assert any(fits(overload, given) for overload in signature(member)), f"{real.__name__}.{name}{given}: {signature(member)}"
                return played[name](self, *given)

            return call

    Double.__name__ = real.__name__
    return Double


def module(rtx, version="10.9.0.34", device="GPU A", memory=None):
    """A module `tensorrt` of this version on this device. `memory`: the bytes of the device (cuda_double.Memory)."""
    old = int(version.split(".")[0]) < 11
    trt = types.ModuleType("tensorrt")
    for name in dir(rtx):
        if not name.startswith("_"):
            setattr(trt, name, getattr(rtx, name))
    trt.__version__, trt.device, trt.networks, trt.configs, trt.messages = version, device, [], [], []
    if old:
        trt.NetworkDefinitionCreationFlag = flags(rtx.NetworkDefinitionCreationFlag, {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1})
        trt.BuilderFlag = flags(rtx.BuilderFlag, {name: 40 + i for i, name in enumerate(FORBIDDEN)})
        trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED = 1
    else:
        trt.NetworkDefinitionCreationFlag = flags(rtx.NetworkDefinitionCreationFlag, {}, gone=True)
    trt.Builder = lambda logger: Builder(trt, rtx, logger, old)
    trt.OnnxParser = lambda network, logger: Parser(rtx, network, logger)
    trt.Runtime = runtime(trt, rtx, memory)
    return trt


class Builder:
    """The real one, but for networks, configurations and plans."""

    def __init__(self, trt, rtx, logger, old):
        self.trt, self.logger, self.old, self.real = trt, logger, old, rtx.Builder(logger)

    def create_network(self, flags=0):
        assert flags == (1 << 1 if self.old else 0), "TensorRT 10 must be asked for strong typing, 11 has nothing else"
        self.trt.networks.append(self.real.create_network(0))
        return self.trt.networks[-1]

    def create_builder_config(self):
        config = Config(self.trt, self.real.create_builder_config())
        self.trt.configs.append(config)
        return config

    def create_optimization_profile(self):
        return self.real.create_optimization_profile()

    def build_serialized_network(self, network, config):
        config.cache.entries += 1
        for severity, text in self.trt.messages:
            self.logger.log(severity, text)
        onnx = Parser.parsed[id(network)]
        head = {
            "version": self.trt.__version__,
            "device": self.trt.device,
            "batch": config.batch or [list(network.get_input(0).shape)] * 3,
            "portable": config.portable(),
        }
        head["outputs"] = [network.get_output(i).name for i in range(network.num_outputs)]
        return json.dumps(head).encode() + b"\n" + onnx


class Parser:
    parsed = {}  # id of a network -> the bytes it was read from

    def __init__(self, rtx, network, logger):
        self.network, self.real = network, rtx.OnnxParser(network, logger)

    def parse(self, model):
        self.parsed[id(self.network)] = bytes(model)
        return self.real.parse(model)

    def __getattr__(self, name):
        return getattr(self.real, name)


class Cache:
    def __init__(self, version, device, entries):
        self.version, self.device, self.entries = version, device, entries

    def serialize(self):
        return json.dumps([self.version, self.device, self.entries]).encode()


class Config:
    """The real one, which checks arguments, but for the timing cache and for levels that TensorRT-RTX does not have."""

    def __init__(self, trt, real):
        real.set_flag(trt.BuilderFlag.TF32)  # on from the start in TensorRT, off in TensorRT-RTX
        self.__dict__.update(trt=trt, real=real, cache=None, batch=None, said={})

    def __getattr__(self, name):
        return getattr(self.real, name)

    def __setattr__(self, name, value):
        assert isinstance(getattr(type(self.real), name), property)
        self.said[name] = value
        setattr(self.real, name, value)

    def create_timing_cache(self, content):
        assert isinstance(content, bytes)
        if not content:
            return Cache(self.trt.__version__, self.trt.device, 0)
        version, device, entries = json.loads(content)
        return Cache(version, device, entries) if version == self.trt.__version__ else None

    def set_timing_cache(self, cache, ignore_mismatch):
        assert isinstance(cache, Cache) and ignore_mismatch is False, "a cache of another device must not be taken"
        if cache.device != self.trt.device:
            return False
        self.__dict__["cache"] = cache
        return True

    def get_timing_cache(self):
        return self.cache

    def add_optimization_profile(self, profile):
        self.__dict__["batch"] = [list(shape) for shape in profile.get_shape("image")]
        return self.real.add_optimization_profile(profile)

    def portable(self):
        flag = self.trt.BuilderFlag
        return {"versions": self.real.get_flag(flag.VERSION_COMPATIBLE), "devices": "hardware_compatibility_level" in self.said}


def runtime(trt, rtx, memory):
    engines = generated(
        rtx.ICudaEngine,
        {
            "num_io_tensors": lambda self: 1 + len(self.head["outputs"]),
            "get_tensor_name": lambda self, i: ["image", *self.head["outputs"]][i],
            "get_tensor_profile_shape": lambda self, name, profile: self.head["batch"],
            "create_execution_context": lambda self: contexts(engine=self, shapes={}, addresses={}, profiled=None),
            "create_engine_inspector": lambda self: inspectors(engine=self),
        },
    )
    inspectors = generated(
        rtx.EngineInspector, {"get_engine_information": lambda self, form: json.dumps({"Layers": [n.name for n in self.engine.nodes]})}
    )

    def set_input_shape(self, name, shape):
        least, _, most = self.engine.head["batch"]
        self.shapes[name] = shape
        return name == "image" and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return name in ("image", *self.engine.head["outputs"])

    def execute(self, stream):
        shape, addresses = self.shapes["image"], dict(self.addresses)

        def work():
            image = np.frombuffer(memory.read(addresses["image"], int(np.prod(shape))), np.uint8).reshape(shape)
            memory.write(addresses["classmap"], self.engine.session.run(["classmap"], {"image": image})[0].tobytes())
            if "profiler" in self.__dict__:
                for node in self.engine.nodes:
                    self.profiler.report_layer_time(node.name, 0.5)

        memory.streams[stream].append(work)
        return True

    contexts = generated(
        rtx.IExecutionContext,
        {"set_input_shape": set_input_shape, "set_tensor_address": set_tensor_address, "execute_async_v3": execute},
    )

    def deserialize(self, plan):
        import onnx
        import onnxruntime

        head, _, content = plan.partition(b"\n")
        head = json.loads(head)
        reasons = {"Version tag does not match": head["version"] != trt.__version__ and not head["portable"]["versions"]}
        reasons["device does not match"] = head["device"] != trt.device and not head["portable"]["devices"]
        reasons["host code is not allowed"] = head["portable"]["versions"] and not self.__dict__.get("engine_host_code_allowed")
        for text in (text for text, true in reasons.items() if true):
            self.logger_given.log(rtx.ILogger.Severity.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 6: {text}")
            return None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(content, options)
        return engines(head=head, session=session, nodes=onnx.load_from_string(content).graph.node)

    made = generated(rtx.Runtime, {"deserialize_cuda_engine": deserialize})
    return lambda logger: made(logger_given=logger)
