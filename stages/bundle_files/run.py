"""Runs the network of this folder on a picture and writes a coloured mask. Needs numpy, pillow and the runtime: see requirements.txt.

python run.py picture.png                 writes picture_mask.png
python run.py picture.jpg -o mask.png
python run.py --check                     looks whether this folder is whole and this machine computes what it should

Ends with 0; with 2 if the picture, the mask's place or this machine is of no use; with 7 if a file is not the one that was bundled.
"""

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]  # this folder: a numpy.py that somebody put here is not numpy

import argparse
import hashlib
import json
import re
import types
from pathlib import Path

HERE = Path(__file__).resolve().parent
OPENED = ("runtime.py", "classes.json", "preprocessing.json")  # what a run opens, besides engine.*
NATIVE = ("argmax.py", "argmax.c", "engine.tail.onnx")  # and what it opens of an engine that gives logits
CHECKED = (*OPENED, "run.py", "requirements.txt", "sample.png", "expected.png", "model.onnx", "README.txt", "verdict.json")
COMPILED = "in argmax.c, compiled with"
LARGEST = 64_000_000  # pixels of a picture
LONGEST = 1 << 20  # bytes of a JSON file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, help="a PNG or JPEG file")
    parser.add_argument(
        "-o", "--output", type=Path, help="where the mask goes (a PNG by any name); default: PICTURE_mask.png beside the picture"
    )
    parser.add_argument("--check", action="store_true", help="verify every file and run the sample picture")
    given = parser.parse_args()
    try:
        if given.check:
            return check()
        if given.picture is None:
            parser.error("name a picture, or ask for --check")
        return mask(given.picture, given.output or given.picture.with_name(f"{given.picture.stem}_mask.png"))
    except Problem as problem:
        print(problem, file=sys.stderr)
        return problem.code
    except MemoryError as error:
        print(f"there is not enough memory here: {error}", file=sys.stderr)
        return Problem.code
    except ImportError as error:
        print(f"{error}: pip install -r {HERE / 'requirements.txt'}", file=sys.stderr)
        return Problem.code
    except (LookupError, TypeError, ValueError) as error:
        print(f"the files of this folder do not fit together ({type(error).__name__}: {error}): fetch it again", file=sys.stderr)
        return Changed.code


class Problem(Exception):
    code = 2


class Changed(Problem):
    """A file is not the one that was bundled."""

    code = 7


def mask(picture: Path, output: Path) -> int:
    import numpy as np

    bundle = described()
    (run, how), names = engine(bundle), read("classes.json")["classes"]
    image = opened(picture)
    found = predicted(image, run)
    try:
        painted(found).save(output, format="PNG")  # whatever it is called: other formats change class numbers
    except OSError as error:
        raise Problem(f"{output} cannot be written ({error.strerror or error}): name another place with -o") from None
    shares = np.bincount(found.ravel(), minlength=len(names)) / found.size
    print(f"{output}: {image.width} x {image.height} pixels; argmax {how}")
    for k in np.argsort(-shares, kind="stable"):
        if shares[k] > 0:
            print(f"  {shares[k]:7.2%}  {names[k] if k < len(names) else k}")
    return 0


def check() -> int:
    bundle = described()
    for name, digest in bundle["files"].items():
        verify(name, digest)
    import numpy as np  # only now: before, nothing but this file and Python itself has a say

    expected = np.asarray(decoded(HERE / "expected.png"))
    run, how = engine(bundle)
    found = predicted(opened(HERE / "sample.png"), run)
    share = float((found == expected).mean()) if found.shape == expected.shape else 0.0
    if share < bundle["least_agreement"]:
        raise Problem(
            f"the sample gives the expected class on {share:.4%} of pixels, {bundle['least_agreement']:.2%} is asked: not usable here"
        )
    print(f"whole: {len(bundle['files'])} files as bundled; the sample gives the expected class on {share:.4%} of pixels; argmax {how}")
    if how.startswith(COMPILED):
        same = float((found == predicted(opened(HERE / "sample.png"), engine(bundle, compiling=False)[0])).mean())
        if same < bundle["least_agreement"]:
            raise Problem(f"argmax.c as compiled here gives the class of the graph on {same:.4%} of pixels: not usable here")
        print(f"without a compiler the graph would give the same class on {same:.4%} of pixels")
    if not bundle["passed"]:
        print("but the measurements of this network broke a rule of its gate: see README.txt")
    return 0


def predicted(image, run):
    """The class of every pixel, uint8 (h, w), at the picture's own size."""
    import numpy as np
    from PIL import Image

    height, width = size = read("preprocessing.json")["input"]["size"]
    if any(type(n) is not int or n < 1 for n in size) or height * width > LARGEST:
        raise Changed(f"preprocessing.json asks for pictures of {str(size)[:80]}: fetch this folder again")
    small = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
    try:
        found = run(np.array(small, dtype=np.uint8)[None])[0]  # (1, H, W, 3) -> (H, W)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # of the runtime: each has its own kinds
        raise Problem(f"the engine opens here and does not compute: {type(error).__name__}: {str(error)[:300]}") from None
    if image.size == (width, height):
        return found
    return np.asarray(Image.fromarray(found).resize(image.size, Image.Resampling.NEAREST))


def opened(path: Path):
    from PIL import ImageOps

    image = decoded(path)
    try:
        return ImageOps.exif_transpose(image).convert("RGB")  # cameras note how they were held
    except Exception as error:  # decoders have many words for a picture that is none
        raise Problem(f"{path} cannot be read as a picture: {error}") from None


def decoded(path: Path):
    """A PNG or JPEG as it is; its size is looked at before its pixels are."""
    from PIL import Image

    try:
        if not path.is_file():
            raise OSError("there is no such file")
        image = Image.open(path, formats=("PNG", "JPEG"))
        if image.width * image.height > LARGEST:
            raise OSError(f"{image.width} x {image.height} pixels, and {LARGEST:,} are the limit")
        image.load()
        return image
    except Exception as error:
        raise Problem(f"{path} cannot be read as a picture: {error}") from None


def painted(found):
    """A PNG in palette mode: it shows colours, and its values are class numbers."""
    from PIL import Image

    colours = read("classes.json")["colours"]
    picture = Image.fromarray(found)
    picture.putpalette([value for colour in colours for value in colour] + [0, 0, 0] * (256 - len(colours)))
    return picture


def described() -> dict:
    """bundle.json, when it says what it must: all files by name and digest, the engine's settings, the share of pixels to reproduce."""
    found = read("bundle.json")
    files, engines = found.get("files"), []
    if isinstance(files, dict):
        engines = [name for name in files if name.startswith("engine.")]
        for name, digest in files.items():
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,80}", name) or not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
                raise Changed(f"bundle.json lists {name[:80]!r} with {str(digest)[:80]!r}: fetch this folder again")
    least, passed, settings = found.get("least_agreement"), found.get("passed"), found.get("engine")
    needed = CHECKED + NATIVE if isinstance(settings, dict) and settings.get("argmax") == "native" else CHECKED
    missing = sorted(set(needed) - set(files if isinstance(files, dict) else ()))
    if missing or not engines:
        raise Changed(f"bundle.json does not list {missing[0] if missing else 'an engine'}: fetch this folder again")
    if not isinstance(least, float) or not 0.9 <= least <= 1 or not isinstance(passed, bool) or not isinstance(settings, dict):
        raise Changed("bundle.json does not say what the engine must reproduce and how it runs: fetch this folder again")
    return found


def verify(name: str, digest: str) -> None:
    file, hasher = HERE / name, hashlib.sha256()
    if file.is_symlink() or not file.is_file():
        raise Changed(f"{name} is missing, or no plain file: fetch this folder again")
    with file.open("rb") as content:
        while piece := content.read(1 << 20):
            hasher.update(piece)
    if hasher.hexdigest() != digest:
        raise Changed(f"{name} is not the file that was bundled (its sha256 differs): fetch this folder again")


def read(name: str) -> dict:
    file = HERE / name
    if file.is_symlink() or not file.is_file() or file.stat().st_size > LONGEST:
        raise Changed(f"{name} is missing, no plain file, or too large: fetch this folder again")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Changed(f"{name} is not JSON ({str(error)[:80]}): fetch this folder again") from None
    if not isinstance(found, dict):
        raise Changed(f"{name} does not hold a JSON object: fetch this folder again")
    return found


def engine(bundle: dict, compiling: bool = True):
    """(a function from uint8 (1, H, W, 3) to uint8 (1, H, W), how it takes the argmax). What was bundled is what runs, or nothing does."""
    settings, files = bundle["engine"], bundle["files"]
    native = settings.get("argmax") == "native"
    for name, digest in files.items():
        if name in OPENED or (native and name in NATIVE) or name.startswith("engine."):
            verify(name, digest)
    runtime = module("runtime.py", files)
    try:
        run = runtime.load(HERE, settings)
        if not native:
            return run, "in the graph"
        rest, how = tail(runtime, bundle) if compiling else (runtime.load_tail(HERE, settings), "in a graph of its own")
        return lambda images: rest(run(images)), how
    except (ImportError, Problem):
        raise
    except runtime.Unfit as unfit:
        raise Problem(str(unfit)) from None
    except Exception as error:  # of the runtime: each has its own kinds
        raise Problem(f"the engine cannot be opened: {type(error).__name__}: {str(error)[:300]}") from None


def tail(runtime: types.ModuleType, bundle: dict):
    """(a function from logits to uint8 (1, H, W), how): through argmax.c where this machine can compile it, else as a graph."""
    files = bundle["files"]
    native = module("argmax.py", files)
    try:
        if bundle["tail"]["size"] != read("preprocessing.json")["input"]["size"]:
            raise ValueError(f"class maps of {str(bundle['tail']['size'])[:80]}")
        run, compiler = native.load(content("argmax.c", files), bundle["tail"], bundle["engine"]["threads"])
    except native.Unfit as unfit:
        return runtime.load_tail(HERE, bundle["engine"]), f"in a graph of its own, for {unfit}"
    except (LookupError, TypeError, ValueError) as error:
        raise Changed(f"bundle.json does not say how logits become classes ({error}): fetch this folder again") from None
    return run, f"{COMPILED} {compiler}"


def module(name: str, files: dict) -> types.ModuleType:
    """These bytes as Python, and no cached ones from beside them."""
    made = types.ModuleType(name.removesuffix(".py"))
    exec(compile(content(name, files), str(HERE / name), "exec"), made.__dict__)
    return made


def content(name: str, files: dict) -> bytes:
    """What a file held when its digest was taken, so that nobody can change it between the look and its use."""
    found = (HERE / name).read_bytes()
    if hashlib.sha256(found).hexdigest() != files[name]:
        raise Changed(f"{name} changes while it is read")
    return found


if __name__ == "__main__":
    sys.exit(main())
