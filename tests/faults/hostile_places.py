"""Hostile files in other places: configs beside weights, engines, checkpoints, data sets, and the start of a training."""

import json
import struct

from hostile import HARMLESS, TINY, TRIGGERED, Hostile, entry, loaded, npy_of, tensors, weights
from hostile_graphs import HEIGHT, NODES, UINT8, WIDTH, external, graphs_once, model, node, whole, with_weight

SEGFORMER = {
    "model_type": "segformer",
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 1, 2],
    "decoder_hidden_size": 16,
}
BUILDS = "model.settings|belong together|memory|processor time|does not fit"


def control(given, outside):
    (given / "payload").write_bytes(loaded("os", "system", f"touch {outside / 'mark'}", protocol=4))
    return {"file": str(given / "payload"), "outside": str(outside / "secret.txt")}


CONTROL = Hostile("unguarded", control, "", TRIGGERED)


# -- configs beside sound weights


CONFIGS = {
    "code of its own": {"auto_map": {"AutoConfig": "canary_module.X", "AutoModelForSemanticSegmentation": "canary_module.X"}},
    "code from the hub": {"auto_map": {"AutoModelForSemanticSegmentation": "evil/evil--canary_module.X"}, "trust_remote_code": True},
    "code in a backbone": {"backbone_config": {"model_type": "convnext", "auto_map": {"AutoBackbone": "canary_module.X"}}},
    "a kernel from the hub": {"_attn_implementation": "evil/attention"},
    "a kernel in a backbone": {"backbone_config": {"attn_implementation": "evil/attention@main:f"}},
    "kernels for experts": {"experts_implementation": "evil/experts"},
    "a backbone from the hub": {"model_type": "upernet", "backbone": "evil/backbone"},
    "a backbone through timm": {"model_type": "upernet", "backbone": "resnet50", "use_timm_backbone": True},
    "a backbone through timm's hub": {
        "model_type": "upernet",
        "backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:evil/x"},
    },
    "a pretrained backbone": {
        "model_type": "dpt",
        "backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50", "use_pretrained_backbone": True},
    },
    "quantisation": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    "an adapter": {"peft_config": {"base_model_name_or_path": "evil/x"}},
    "another file": {"gguf_file": "../outside/secret.txt"},
    "more files": {"extra_files": ["../outside/secret.safetensors"], "extra_config_files": ["../outside/secret.json"]},
    "dunder names": {"__class__": "canary_module.X", "__reduce__": "x"},
    "names of methods": {"to_dict": "x", "save_pretrained": 1, "__init__": None},
    "another kind of network": {"model_type": "bert"},
    "no kind": {"model_type": ""},
    "a kind that is a path": {"model_type": "../../canary_module"},
    "a kind that is a list": {"model_type": ["segformer"]},
    "half a surrogate": {"model_type": "\ud800"},
    "a width of 10^9": {"hidden_sizes": [8, 16, 24, 10**9]},
    "widths of millions": {"hidden_sizes": [10**6, 10**6, 10**6, 10**6]},
    "a network of 40 GB": {"decoder_hidden_size": 100_000, "hidden_sizes": [8, 16, 24, 100_000]},
    "a million layers": {"depths": [1_000_000, 1, 1, 1]},
    "a negative width": {"hidden_sizes": [-8, 16, 24, 32]},
    "a width of zero": {"hidden_sizes": [0, 0, 0, 0]},
    "widths in words": {"hidden_sizes": "wide", "depths": {"a": 1}},
    "widths that are lists": {"hidden_sizes": [[8], [16], [24], [32]]},
    "an image of 10^6": {"model_type": "dpt", "image_size": 1_000_000},
    "an image of 4096 in single pixels": {
        "model_type": "beit",
        "image_size": 4096,
        "patch_size": 1,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    },
    "not a number": {"initializer_range": float("nan")},
    "infinity": {"layer_norm_eps": float("inf")},
    "an activation that is code": {"hidden_act": "__import__('os').system('x')"},
    "no mapping as answer": {"return_dict": False, "output_attentions": True},
    "a dtype that is a function": {"dtype": "load", "torch_dtype": "load", "backbone_config": {"dtype": "hub"}},
    "other names for settings": {"attribute_map": {"hidden_sizes": "__class__"}},
    "layers of their own": {"per_layer_config": {"0": {"hidden_sizes": [10**6]}}},
    "a million values": {"hidden_sizes": [1] * 90_000},
    "lists in lists": {"depths": [[[[[[[[[[[[1]]]]]]]]]]]]},
}
CONFIG_FILES = {
    "a config nested 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a config nested 900 deep": b'{"a":' * 900 + b"1" + b"}" * 900,
    "a config of 10 MB": b'{"a":"' + b"x" * 10_000_000 + b'"}',
    "a config that is a list": b"[1]",
    "a config that is a pickle": loaded("os", "system", "x", protocol=2),
    "a config in UTF-16": '{"model_type": "segformer"}'.encode("utf-16"),
    "a config of zeros": bytes(1000),
    "an empty config": b"",
    "a config with a number of 100,000 digits": b'{"model_type":"segformer","hidden_sizes":' + b"9" * 100_000 + b"}",
}
PROCESSORS = {
    "words": {"image_mean": "grey"},
    "two colours": {"image_mean": [0.5, 0.5]},
    "a spread of zero": {"image_std": [0, 0, 0]},
    "a factor of infinity": {"rescale_factor": float("inf")},
    "code": {"auto_map": {"AutoImageProcessor": "canary_module.X"}, "image_mean": [["x"]]},
}


def config_cases():
    def made(given, outside, content, processor=None):
        (given / "config.json").write_bytes(content)
        if processor:
            (given / "preprocessor_config.json").write_text(json.dumps(processor))
        return weights(given, "model.safetensors", tensors({"w": entry()}, bytes(8)), {"kind": "hf"}) | {"weights": str(given)}

    found = {}
    for name, config in CONFIGS.items():
        content = json.dumps(SEGFORMER | config if config.get("model_type", "segformer") == "segformer" else config).encode()
        found[f"a config with {name}"] = Hostile("weights", lambda g, o, c=content: made(g, o, c), BUILDS)
    for name, content in CONFIG_FILES.items():
        found[name] = Hostile("weights", lambda g, o, c=content: made(g, o, c), "config.json|model.settings")
    for name, processor in PROCESSORS.items():
        content = json.dumps(SEGFORMER).encode()
        found[f"a processor of {name}"] = Hostile(
            "weights", lambda g, o, c=content, p=processor: made(g, o, c, p), "preprocessor_config.json"
        )
    return found


def start_cases():
    """The same files as the start of a training."""

    def pickled(given, outside):
        return weights(given, "model.pt", loaded("os", "system", f"touch {outside / 'mark'}", protocol=2))

    def lying(given, outside):
        return weights(given, "model.safetensors", tensors({"w": entry(shape=(2**40,))}, bytes(8)))

    def coded(given, outside):
        config = SEGFORMER | {"auto_map": {"AutoConfig": "canary_module.X"}, "attn_implementation": "evil/attention"}
        (given / "config.json").write_text(json.dumps(config))
        return weights(given, "model.safetensors", tensors({"w": entry()}, bytes(8)), {"kind": "hf"})

    return {
        "a start from a pickle": Hostile("init", pickled, "not safetensors but a pickle"),
        "a start from safetensors that lie": Hostile("init", lying, "not a sound safetensors file"),
        "a start from a config with code": Hostile("init", coded, "fetch a program"),
    }


# -- engines, checkpoints

LAYER = '<layer id="{id}" name="{name}" type="{type}" version="{version}">{data}{more}</layer>'
PORT = '<port id="{id}" precision="{kind}"{names}>{dims}</port>'


def port(id, kind, *dims, names=""):
    return PORT.format(id=id, kind=kind, names=f' names="{names}"' if names else "", dims="".join(f"<dim>{d}</dim>" for d in dims))


def layer(id, name, type, data="", takes="", gives="", version="opset1"):
    more = (f"<input>{takes}</input>" if takes else "") + (f"<output>{gives}</output>" if gives else "")
    return LAYER.format(id=id, name=name, type=type, version=version, data=data, more=more)


def plan(offset="0", size="8", element="i64", head='<?xml version="1.0"?>', type="ReduceMax", version="opset1", more="", rank="1"):
    """engine.xml of a network that takes the largest colour of each pixel for its class; its axis is in engine.bin."""
    whole, flat = (-1, HEIGHT, WIDTH, 3), (-1, HEIGHT, WIDTH)
    layers = (
        layer(0, "image", "Parameter", f'<data shape="?,{HEIGHT},{WIDTH},3" element_type="u8"/>', "", port(0, "U8", *whole, names="image")),
        layer(
            1, "axis", "Const", f'<data element_type="{element}" shape="{rank}" offset="{offset}" size="{size}"/>', "", port(0, "I64", 1)
        ),
        layer(
            2,
            "most",
            type,
            '<data keep_dims="false"/>',
            port(0, "U8", *whole) + port(1, "I64", 1),
            port(2, "U8", *flat, names="classmap"),
            version,
        ),
        layer(3, "classmap", "Result", "", port(0, "U8", *flat)),
        more,
    )
    edges = "".join(
        f'<edge from-layer="{a}" from-port="{b}" to-layer="{c}" to-port="{d}"/>'
        for a, b, c, d in ((0, 0, 2, 0), (1, 0, 2, 1), (2, 2, 3, 0))
    )
    return f'{head}<net name="g" version="11"><layers>{"".join(layers)}</layers><edges>{edges}</edges></net>'.encode()


LAUGHS = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(12))
PLANS = {
    "a billion laughs": plan(head=f'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY l0 "ha">{LAUGHS}]>', more="<x>&l12;</x>"),
    "an entity of another file": plan(head='<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd">]>', more="<x>&x;</x>"),
    "a declaration from elsewhere": plan(head='<!DOCTYPE net SYSTEM "http://127.0.0.1:9/x.dtd">'),
    "a parameter entity": plan(head='<!DOCTYPE net [<!ENTITY % x SYSTEM "file:///etc/passwd"> %x;]>'),
    "UTF-16": plan(head='<?xml version="1.0" encoding="UTF-16"?>').decode().encode("utf-16"),
    "data beyond the file": plan(offset="4"),
    "data of 2^62 bytes": plan(size=str(2**62)),
    "data before the file": plan(offset="-8"),
    "an offset in words": plan(offset="0x0"),
    "an operator from a library": plan(type="Evil", version="extension"),
    "an experimental operator": plan(version="experimental"),
    "a loop": plan(type="Loop", version="opset5"),
    "an iterator": plan(type="TensorIterator"),
    "an operator that is not there": plan(type="Evil"),
    "a constant larger than its data": plan(rank="1099511627776"),
    "elements 100,000 deep": plan(more="<a>" * 100_000 + "</a>" * 100_000),
    "another document": b"<html><body>not found</body></html>",
    "half of it": plan()[:600],
    "random bytes": bytes(range(256)) * 8,
    "a pickle": loaded("os", "system", "x", protocol=2),
    "nothing": b"",
}
SEVEN = plan(head='<?xml version="1.0" encoding="UTF-7"?>')  # its bytes are ASCII and mean the same
PLAN_SAYS = "engine.xml|openvino does not take|memory"


def engine_cases():
    def engine(given, kind, **files):
        for name, content in files.items():
            (given / f"engine.{name}").write_bytes(content)
        return {"folder": str(given), "artifact": "Engine", "facts": {"engine": {"kind": kind, "threads": 1}, **MODEL}}

    def linked(given, outside, kind, name, target):
        asked = engine(given, kind, xml=plan(), bin=struct.pack("<q", 3))
        (given / name).unlink(missing_ok=True)
        (given / name).symlink_to(target)
        return asked

    bare = struct.pack("<q", 3)
    found = {"a sound OpenVINO engine": Hostile("measure", lambda g, o: engine(g, "openvino", xml=plan(), bin=bare), "", HARMLESS)}
    found["an OpenVINO engine that claims UTF-7"] = Hostile(
        "measure", lambda g, o: engine(g, "openvino", xml=SEVEN, bin=bare), "", HARMLESS
    )
    found |= {
        f"an OpenVINO engine, {name}": Hostile("measure", lambda g, o, x=content: engine(g, "openvino", xml=x, bin=bare), PLAN_SAYS)
        for name, content in PLANS.items()
    }
    links = {"engine.xml": "/proc/self/environ", "engine.bin": "/dev/zero"}
    found |= {
        f"an OpenVINO engine, {name} is a link": Hostile(
            "measure", lambda g, o, n=name, t=target: linked(g, o, "openvino", n, t), "plain file"
        )
        for name, target in links.items()
    }
    found["an OpenVINO engine without data"] = Hostile("measure", lambda g, o: engine(g, "openvino", xml=plan()), "plain file")
    found["an ONNX engine that is a link"] = Hostile(
        "measure", lambda g, o: linked(g, o, "onnxruntime", "engine.onnx", o / "secret.txt"), "plain file"
    )
    contents = {
        "random bytes": lambda: graphs_once()["random bytes 0"][0],
        "a TensorRT plan": lambda: graphs_once()["a TensorRT plan"][0],
        "a pickle": lambda: graphs_once()["a pickle"][0],
        "weights elsewhere": lambda: with_weight(external("../outside/secret.txt")),
        "a map of another shape": lambda: model(nodes=WIDE),
    }
    for name, content in contents.items():
        found[f"an ONNX engine, {name}"] = Hostile(
            "measure", lambda g, o, c=content: engine(g, "onnxruntime", onnx=c()), "engine|external data"
        )
    for name, content in (("a pickle", loaded("os", "system", "x", protocol=2)), ("malformed", tensors({"w": entry("EVIL")}, bytes(8)))):
        found[f"a PyTorch engine, {name}"] = Hostile("measure", lambda g, o, c=content: engine(g, "pytorch", safetensors=c), "safetensors")

        def checkpoint(given, outside, content=content):
            (given / "weights.safetensors").write_bytes(content)
            return {"folder": str(given), "artifact": "Checkpoint", "facts": MODEL}

        found[f"a checkpoint, {name}"] = Hostile("measure", checkpoint, "safetensors")
    for kind in ("tensorrt_lean", "../../canary_module", "onnxruntime.x"):
        found[f"an engine of kind {kind}"] = Hostile("measure", lambda g, o, k=kind: engine(g, k, plan=b"ftrt" * 99), "no row")
    return found


MODEL = {"model": TINY}


WIDE = (*NODES[:2], node("Concat", ["c", "c"], ["d"], whole("axis", 2)), node("Cast", ["d"], ["classmap"], whole("to", UINT8)))


def pixel_cases():
    """Arrays of a Dataset artifact."""

    def made(given, content):
        for name in ("val_images.npy", "val_labels.npy"):
            (given / name).write_bytes(content)
        return {"folder": str(given)}

    body = loaded("os", "system", "touch mark", protocol=2)
    contents = {
        "objects": npy_of(body),
        "objects in a record": npy_of(body, [("a", "|O")]),
        "a type that is code": npy_of(b"", "__import__('os').system('x')"),
        "a shape of terabytes": npy_of(b"", "|u1", (2**20, 2**20, 2**10, 3)),
        "a negative shape": npy_of(b"", "|u1", (-1, 64, 96, 3)),
        "a zip": b"PK\x03\x04" + bytes(100),
        "a pickle": body,
        "floats": npy_of(bytes(3 * 64 * 96 * 3 * 4), "<f4", (3, 64, 96, 3)),
    }
    return {f"arrays of {name}": Hostile("pixels", lambda g, o, c=content: made(g, c), "npy") for name, content in contents.items()}


def cases():
    return config_cases() | start_cases() | engine_cases() | pixel_cases()
