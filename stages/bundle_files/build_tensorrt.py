"""Builds a TensorRT or TensorRT-RTX engine from an ONNX file for the machine it runs on.

python build_tensorrt.py      in a bundle's folder: writes rebuilt.plan from model.onnx with the settings of the bundle, and run.py uses it

It needs the runtime and nothing else of Stillhouse, which builds its own engines through this very file. Precision stands in the ONNX
file (fp16 tensors, explicit Q/DQ): the network is strongly typed, and no flag changes a type behind its back.
"""

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]  # this folder: a tensorrt.py that somebody put here is not TensorRT

import hashlib
import json
import re
import types
from pathlib import Path
from typing import Any

# As the builder says it: "Skipping tactic 28 due to insufficient memory", "Requested amount of GPU memory ... could not be allocated".
SKIPPED = re.compile(r"insuff?icient memory|memory is insufficient|sufficient workspace|memory .* could not be allocated", re.IGNORECASE)


ADVICE = {  # what a message of the parser or builder speaks of -> what to do about it
    "QuantizeLinear": "TensorRT takes int8 with zero points of 0 and with biases left in floating point: quantise for runtime: tensorrt",
    "UInt8 but must": "TensorRT takes uint8 only into a cast to floating point, and out of one: export the network again",
}
KEPT_WARNINGS = 20


class Failed(Exception):
    """No engine, why, and what to do."""

    def __init__(self, text: str):
        super().__init__("; ".join([text, *(advice for sign, advice in ADVICE.items() if sign in text)]))


def main() -> int:
    here = Path(__file__).resolve().parent
    bundle = json.loads((here / "bundle.json").read_text(encoding="utf-8"))
    names = ["runtime.py", "model.onnx", *(["engine.timing"] if "engine.timing" in bundle["files"] else [])]
    content = {name: (here / name).read_bytes() for name in names}
    for name, found in content.items():
        if hashlib.sha256(found).hexdigest() != bundle["files"][name]:
            print(f"{name} is not the file that was bundled: fetch this folder again", file=sys.stderr)
            return 7
    runtime = types.ModuleType("runtime")
    exec(compile(content["runtime.py"], str(here / "runtime.py"), "exec"), runtime.__dict__)  # the bytes that were compared
    if not runtime.has_driver():
        print("an engine is built on the GPU that will run it, and the driver shows none on this machine", file=sys.stderr)
        return 2
    trt = runtime.imported(bundle["engine"]["kind"])
    log = runtime.logger(trt)
    try:
        made = built(trt, content["model.onnx"], bundle["engine"], log, content.get("engine.timing"))
    except Failed as failed:
        print(failed, file=sys.stderr)
        return 2
    (here / "rebuilt.plan").write_bytes(made.plan)
    said = {"plan": hashlib.sha256(made.plan).hexdigest(), "runtime": f"{trt.__name__} {trt.__version__}", "timing": made.timing_said}
    (here / "rebuilt.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    print(f"rebuilt.plan: {len(made.plan):,} bytes by {said['runtime']}; timing cache: {made.timing_said}. Now: python run.py --check")
    return 0


def built(trt: Any, model: bytes, settings: dict, log: Any, timing: bytes | None = None, look: Any = None) -> types.SimpleNamespace:
    """plan: the engine's bytes. timing: what was measured on the way, for the next build (None: this runtime keeps no such thing).

    told: what is worth knowing of the build; `network` in it is what `look` makes of the parsed network before it is built.
    """
    before = len(log.said)
    network = parsed(trt, model, log)
    told = {"network": look(network.network) if look else None}
    made = planned(trt, network, settings, log, timing)
    warnings = said(log, before)
    made.told = told | {"timing": made.timing_said, "warnings": warnings[:KEPT_WARNINGS], "skipped_tactics": len(skipped(warnings))}
    return made


def parsed(trt: Any, model: bytes, log: Any) -> types.SimpleNamespace:
    """The network as TensorRT understands it, with what must live as long. Its only output is the class map."""
    try:
        builder = trt.Builder(log)
    except TypeError:  # the bindings' word for "none was made"
        raise Failed(f"{named(trt)} gives no builder: {said(log)[-1:] or 'it does not say why'}") from None
    network = builder.create_network(strongly_typed(trt))
    parser = trt.OnnxParser(network, log)  # owns the weights until the engine is built
    if not parser.parse(model):
        found = [told(parser.get_error(i)) for i in range(parser.num_errors)]
        raise Failed(f"{named(trt)} does not take this network: {'; '.join(dict.fromkeys(found))}")
    if [network.get_input(i).name for i in range(network.num_inputs)] != ["image"]:  # bytes that are no network parse well, too
        raise Failed(f"{named(trt)} reads no network with the input image from this file")
    for tensor in [network.get_output(i) for i in range(network.num_outputs)]:
        if tensor.name != "classmap":
            network.unmark_output(tensor)
    return types.SimpleNamespace(builder=builder, network=network, parser=parser)


def strongly_typed(trt: Any) -> int:
    """The flags of a network whose types are those of the ONNX file: asked for where weak typing exists too, as in TensorRT 10."""
    if "FP16" in trt.BuilderFlag.__members__:
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def told(error: Any) -> str:
    """One error of the parser, which reports every node it does not know, and the first it knows and cannot take as it stands."""
    text = " ".join(error.desc().split())[:400]
    found = f"node {error.node_name() or error.node()} ({error.node_operator()}): {error.code().name.lower()}"
    return found if text == "false" else f"{found}, {text}"


def planned(trt: Any, parsed: Any, settings: dict, log: Any, timing: bytes | None = None) -> types.SimpleNamespace:
    config = configured(trt, parsed.builder, settings)
    profile(parsed.builder, parsed.network, config, settings["batch"])
    keeps = settings["kind"] == "tensorrt"  # TensorRT-RTX measures nothing when it builds
    timing_said = with_timing(config, timing) if keeps else "not kept by this runtime"
    before = len(log.said)
    plan = parsed.builder.build_serialized_network(parsed.network, config)
    if plan is None:
        raise Failed(f"{named(trt)} builds no engine: {'; '.join(said(log, before)[-3:]) or 'it does not say why'}")
    measured = bytes(config.get_timing_cache().serialize()) if keeps else None
    return types.SimpleNamespace(plan=bytes(plan), timing=measured, timing_said=timing_said)


def configured(trt: Any, builder: Any, settings: dict) -> Any:
    config = builder.create_builder_config()
    (config.set_flag if settings["tf32"] else config.clear_flag)(trt.BuilderFlag.TF32)
    config.builder_optimization_level = settings["optimization_level"]
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings["workspace_mb"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings["workspace_mb"] << 20)
    if settings.get("version_compatible"):
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.get("hardware_compatible", "none") != "none":
        wanted = settings["hardware_compatible"].upper()
        if wanted not in trt.HardwareCompatibilityLevel.__members__:
            raise Failed(
                f"hardware_compatible: {wanted.lower()} is not known to {named(trt)}, which has "
                f"{', '.join(name.lower() for name in trt.HardwareCompatibilityLevel.__members__)}: install a newer one or write another"
            )
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.__members__[wanted]
    targets = settings.get("targets", ())
    if targets:
        config.num_compute_capabilities = len(targets)
    for place, target in enumerate(targets):
        known = trt.ComputeCapability.__members__
        if target.upper() not in known or not config.set_compute_capability(known[target.upper()], place):
            raise Failed(f"targets: {target} is not one that {named(trt)} builds for: {', '.join(known).lower()}")
    return config


def profile(builder: Any, network: Any, config: Any, batch: list[int]) -> None:
    """For a network that takes any number of images: from how many to how many, and for how many it is made fastest."""
    image = network.get_input(0)
    batches, size = list(batch), tuple(image.shape)[1:]
    if image.shape[0] != -1:
        if batches != [image.shape[0]] * 3:
            raise Failed(
                f"batch: {batches} asks for other batches than the network's fixed {image.shape[0]}: export with dynamic_batch: true"
            )
        return
    made = builder.create_optimization_profile()
    made.set_shape(image.name, *((count, *size) for count in batches))
    if not made or config.add_optimization_profile(made) < 0:
        raise Failed(f"batch: {batches} makes no profile for images of {list(size)}")


def with_timing(config: Any, timing: bytes | None) -> str:
    """Attaches what an earlier build measured, or nothing; says which. A cache of another version or device is refused by the runtime."""
    if timing:
        try:
            cache = config.create_timing_cache(timing)
            if cache is not None and config.set_timing_cache(cache, False):
                return "taken"
        except (RuntimeError, TypeError, ValueError):
            pass
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return "refused: of another version or device; measured anew" if timing else "none given; measured anew"


def skipped(lines: list[str]) -> list[str]:
    """What was said about ways of computing that were not tried for lack of memory: the engine may be slower than it could be."""
    return [line for line in lines if SKIPPED.search(line)]


def said(log: Any, since: int = 0) -> list[str]:
    """Warnings and errors, each once."""
    found = (" ".join(text.split())[:300] for severity, text in log.said[since:] if severity != "INFO")
    return list(dict.fromkeys(found))


def named(trt: Any) -> str:
    return f"{trt.__name__.removesuffix('_bindings')} {trt.__version__}"


if __name__ == "__main__":
    sys.exit(main())
