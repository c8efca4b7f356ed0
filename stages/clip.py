"""Text vectors of a CLIP encoder that lies on this disk: safetensors weights and its own tokenizer; no code of theirs is run.

What is read of config.json are sizes and two choices, and they must be those of the weights before anything is allocated.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import BadData, Missing, Stillhouse
from stages import weights
from stages.weights import Weights, compare, config_beside, contained, headers, load_into

if TYPE_CHECKING:
    from torch import Tensor, nn

FILES = {  # of a tokenizer, and the most bytes they may have
    "tokenizer.json": 16 << 20,
    "tokenizer_config.json": 1 << 20,
    "special_tokens_map.json": 1 << 20,
    "vocab.json": 8 << 20,
    "merges.txt": 8 << 20,
}
KINDS = ("clip", "clip_text_model")  # model_type of a whole CLIP, and of its text encoder alone
SIZES = {  # of a text encoder, and the largest that is believed
    "vocab_size": 2_000_000,
    "hidden_size": 16_384,
    "intermediate_size": 65_536,
    "num_hidden_layers": 200,
    "num_attention_heads": 256,
    "max_position_embeddings": 65_536,
}
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
PROJECTION = "text_projection.weight"  # (D, hidden): without it the vectors lie in another space than the images'


def digest(source: Weights) -> str:
    """What identifies weights and tokenizer: the hub's commit, or a digest of every file that would be read."""
    if source.hub:
        return source.digest()
    path = Path(source.file)
    lines = [source.digest(), *(f"{weights.sha256(file)} {file.name}" for file in tokenizer_files(path))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def encode(path: Path, prompts: list[str]) -> "Tensor":
    """(n, D): the projected vector of each prompt, as the encoder gives it."""
    import torch

    try:
        from transformers import CLIPTextModelWithProjection, CLIPTokenizerFast
    except ImportError as e:
        raise Missing(f"embed needs transformers to read a CLIP encoder: pip install 'stillhouse[hf]' ({e})") from None
    settings = sizes(path)
    tokens, end = tokenized(CLIPTokenizerFast, path, prompts, settings)
    net = built(CLIPTextModelWithProjection, path, settings | {"eos_token_id": end, "pad_token_id": end})
    with torch.inference_mode():  # one by one: no padding, and the same bits whoever stands beside
        return torch.cat([net(input_ids=torch.tensor([ids])).text_embeds for ids in tokens])


def sizes(path: Path) -> dict[str, Any]:
    """What config.json says of the text encoder, as far as it is needed."""
    config = config_beside(path, "config.json")
    if config is None:
        raise BadData(f"clip: no config.json beside the weights ({path}): give the folder that save_pretrained wrote")
    if config.get("model_type") not in KINDS:
        raise BadData(f"clip: {path} holds a {str(config.get('model_type'))[:60]!r}, and only CLIP is read ({' or '.join(KINDS)})")
    text = config.get("text_config", {}) if config["model_type"] == "clip" else config
    if not isinstance(text, dict):
        raise BadData(f"clip: text_config in {path}/config.json must be an object")
    kept = {key: text[key] for key in (*SIZES, "hidden_act", "layer_norm_eps") if key in text}
    for key, value in kept.items():
        if key in SIZES:
            fits, wanted = type(value) is int and 1 <= value <= SIZES[key], f"a number from 1 to {SIZES[key]:,}"
        elif key == "hidden_act":
            fits, wanted = value in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"
        else:
            fits, wanted = type(value) in (int, float) and 0 < value < 1, "between 0 and 1"
        if not fits:
            raise BadData(f"clip: config.json of {path}: {key} is {str(value)[:60]!r}, expected {wanted}")
    return kept


def built(network: type, path: Path, settings: dict[str, Any]) -> "nn.Module":
    """The text encoder with its weights; their shapes are compared on headers and an empty network first."""
    import torch

    from stages.bounds import bounded

    given = {k: h for k, h in headers(path).items() if k == PROJECTION or (k.startswith("text_model.") and not k.endswith("position_ids"))}
    width = given[PROJECTION].shape[0] if PROJECTION in given and given[PROJECTION].shape else 512
    what = f"a CLIP text encoder as config.json of {path} describes it"
    try:
        with torch.random.fork_rng(devices=[]):
            with bounded(what, 0), torch.device("meta"):
                empty = network(network.config_class(**settings, projection_dim=width))
            compare(empty.state_dict(), given, (), str(path))
            numbers = sum(p.numel() for p in empty.parameters())
            with bounded(what, 4 * numbers, None):
                net = network(network.config_class(**settings, projection_dim=width))
    except Stillhouse:
        raise
    except Exception as error:  # whatever transformers meets in sizes that nobody vouches for
        raise BadData(f"clip: transformers cannot build {what}: {said(error)}") from None
    load_into(net, given)
    return net.float().eval()


def tokenized(tokenizer: type, path: Path, prompts: list[str], settings: dict[str, Any]) -> tuple[list[list[int]], int]:
    """The numbers of each prompt's tokens, and the number of the last one, where the encoder reads off its answer."""
    from stages.bounds import bounded
    from stages.models.hf.net import quiet

    files = tokenizer_files(path)
    if not {"tokenizer.json", "vocab.json"} & {file.name for file in files}:
        raise BadData(
            f"clip: no tokenizer beside the weights ({path}): vocab.json and merges.txt, or tokenizer.json, belong into that folder"
        )
    try:
        with bounded(f"the tokenizer of {path}", sum(file.stat().st_size for file in files)), quiet():
            words = tokenizer.from_pretrained(str(files[0].parent), local_files_only=True, trust_remote_code=False)
            tokens = [words(prompt)["input_ids"] for prompt in prompts]
    except Stillhouse:
        raise
    except Exception as error:
        raise BadData(f"clip: the tokenizer of {path} cannot be read: {said(error)}") from None
    end, known, most = words.eos_token_id, settings.get("vocab_size", 49_408), settings.get("max_position_embeddings", 77)
    for prompt, ids in zip(prompts, tokens, strict=True):
        if len(ids) > most:
            raise BadData(f"clip: {prompt!r} has {len(ids)} tokens, and this encoder reads {most}: give the class a shorter name (names)")
        if not ids or ids[-1] != end or ids.count(end) != 1 or max(ids) != end or max(ids) >= known:
            raise BadData(f"clip: the tokenizer of {path} does not know all of {prompt!r}, or belongs to another encoder")
    return tokens, end


def tokenizer_files(path: Path) -> list[Path]:
    folder = path if path.is_dir() else path.parent
    files = [contained(folder / name) for name in FILES if (folder / name).exists() or (folder / name).is_symlink()]
    for file in files:
        if file.stat().st_size > FILES[file.name]:
            raise BadData(f"{file} is larger than {FILES[file.name] >> 20} MiB: is it the right file?")
    return files


def said(error: Exception) -> str:
    return "".join(c for c in (str(error).strip() or type(error).__name__).split("\n")[0][:200] if c.isprintable())
