"""Runs the network of this folder on a picture and writes a coloured mask. Needs numpy, pillow and the runtime: see requirements.txt.

python run.py picture.png                 writes picture_mask.png
python run.py picture.jpg -o mask.png
python run.py --check                     looks whether this folder is whole and this machine computes what it should
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, help="a PNG or JPEG file")
    parser.add_argument("-o", "--output", type=Path, help="where the mask goes (PNG); default: PICTURE_mask.png beside the picture")
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
        return 1


class Problem(Exception):
    pass


def mask(picture: Path, output: Path) -> int:
    image = opened(picture)
    found = predicted(image, engine())
    painted(found).save(output)
    shares = np.bincount(found.ravel(), minlength=len(classes()["classes"])) / found.size
    print(f"{output}: {image.width} x {image.height} pixels")
    for k in np.argsort(-shares, kind="stable"):
        if shares[k] > 0:
            print(f"  {shares[k]:7.2%}  {classes()['classes'][k]}")
    return 0


def check() -> int:
    bundle = read("bundle.json")
    for name, digest in bundle["files"].items():
        if not (HERE / name).is_file():
            raise Problem(f"{name} is missing: fetch this folder again")
        if hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest:
            raise Problem(f"{name} is not the file that was bundled (its sha256 differs): fetch this folder again")
    expected = np.asarray(Image.open(HERE / "expected.png"))
    found = predicted(opened(HERE / "sample.png"), engine())
    share = float((found == expected).mean()) if found.shape == expected.shape else 0.0
    if share < bundle["least_agreement"]:
        raise Problem(
            f"the sample gives the expected class on {share:.4%} of pixels, {bundle['least_agreement']:.2%} is asked: not usable here"
        )
    print(f"whole: {len(bundle['files'])} files as bundled; the sample gives the expected class on {share:.4%} of pixels")
    if not bundle["passed"]:
        print("but the measurements of this network broke a rule of its gate: see README.txt")
    return 0


def predicted(image: Image.Image, run) -> np.ndarray:
    """The class of every pixel, uint8 (h, w), at the picture's own size."""
    height, width = read("preprocessing.json")["input"]["size"]
    small = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
    found = run(np.array(small, dtype=np.uint8)[None])[0]  # (1, H, W, 3) -> (H, W)
    if image.size == (width, height):
        return found
    return np.asarray(Image.fromarray(found).resize(image.size, Image.Resampling.NEAREST))


def opened(path: Path) -> Image.Image:
    try:
        return ImageOps.exif_transpose(Image.open(path)).convert("RGB")  # cameras note how they were held
    except OSError as error:
        raise Problem(f"{path} cannot be read as a picture: {error}") from None


def painted(found: np.ndarray) -> Image.Image:
    """A PNG in palette mode: it shows colours, and its values are class numbers."""
    colours = classes()["colours"]
    picture = Image.fromarray(found)
    picture.putpalette([value for colour in colours for value in colour] + [0, 0, 0] * (256 - len(colours)))
    return picture


def classes() -> dict:
    return read("classes.json")


def read(name: str) -> dict:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def engine():
    """A function from uint8 (1, H, W, 3) to uint8 (1, H, W). What was bundled is what runs, or nothing does."""
    from runtime import Unfit, load

    settings = read("bundle.json")["engine"]
    try:
        return load(HERE, settings)
    except ImportError as error:
        raise Problem(f"{error}: pip install -r {HERE / 'requirements.txt'}") from None
    except Unfit as unfit:
        raise Problem(str(unfit)) from None


if __name__ == "__main__":
    sys.exit(main())
