"""Opens engine.onnx in onnxruntime, with the provider it was made for."""

import os
from pathlib import Path

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Unfit(Exception):
    """This machine cannot run the engine as it was measured."""


def load(folder: Path, settings: dict):
    """A function from uint8 (1, H, W, 3) to uint8 (1, H, W), or to float32 logits (1, C, h, w) where the argmax is native.

    Its `bind` is for measuring.
    """
    session, gives = opened(folder / "engine.onnx", settings), "logits" if settings.get("argmax") == "native" else "classmap"

    def run(images):
        return session.run([gives], {"image": images})[0]

    def bind(images):
        """A function that runs the engine alone, on images that lie where it reads them."""
        import onnxruntime

        binding, device = session.io_binding(), "cpu" if settings["provider"] == "cpu" else "cuda"
        binding.bind_ortvalue_input("image", onnxruntime.OrtValue.ortvalue_from_numpy(images, device, 0))
        binding.bind_output(gives, device)

        def bound():
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return bound

    run.bind = bind
    return run


def load_tail(folder: Path, settings: dict):
    """A function from float32 logits (1, C, h, w) to uint8 (1, H, W): what the engine leaves to native code, as a graph."""
    session = opened(folder / "engine.tail.onnx", settings)
    return lambda logits: session.run(["classmap"], {"logits": logits})[0]


def opened(file: Path, settings: dict):
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # since 1.29 the runtime tells its makers of every model it opens unless this is set
    import onnxruntime

    wanted = PROVIDERS[settings["provider"]]
    if wanted not in onnxruntime.get_available_providers():
        raise Unfit(
            f"this engine was made for {wanted}, which is not part of the installed onnxruntime: pip uninstall onnxruntime, then install "
            "onnxruntime-gpu[cuda,cudnn] in the version of requirements.txt"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if settings["provider"] != "cpu":
        onnxruntime.preload_dlls()
    if settings["threads"]:
        options.intra_op_num_threads = settings["threads"]
    how = {"use_tf32": "0"} if settings["provider"] == "cuda" else {}
    session = onnxruntime.InferenceSession(file, options, providers=[(wanted, how)])
    if session.get_providers()[0] != wanted:
        raise Unfit(
            f"this engine was made for {wanted}; onnxruntime gives {session.get_providers()[0]} on this machine, for want of CUDA, cuDNN "
            "or a driver that knows this CUDA: install onnxruntime-gpu[cuda,cudnn] in the version of requirements.txt, or a newer driver"
        )
    return session
