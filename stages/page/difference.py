"""Where one class map says something else than another, and whether that was for the better: as one picture, its colours, its legend."""

import numpy as np
from PIL import Image

IGNORED = 255  # of labels, and of what is returned here
WORSE, BETTER, WRONG = 1, 2, 3
# Told apart by every kind of colour vision, on a pale grey picture (after Okabe & Ito 2008).
PALETTE = {WORSE: (213, 60, 0), BETTER: (0, 114, 178), WRONG: (240, 200, 0), IGNORED: (40, 40, 40)}
LEGEND = {WORSE: "worse: was right", BETTER: "better: is right now", WRONG: "changed, wrong both times", IGNORED: "ignored"}


def difference(before: np.ndarray, after: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Class maps and label uint8 (H, W) -> uint8 (H, W): 0 same, 1 worse, 2 better, 3 changed and wrong both times, 255 ignored."""
    found = np.where(before == after, 0, np.where(before == label, WORSE, np.where(after == label, BETTER, WRONG)))
    return np.where(label == IGNORED, IGNORED, found).astype(np.uint8)


def shares(found: np.ndarray) -> dict[str, float]:
    """Of the pixels that are judged: worse, better, wrong both times."""
    judged = max(1, np.count_nonzero(found != IGNORED))
    return {word: np.count_nonzero(found == code) / judged for word, code in (("worse", WORSE), ("better", BETTER), ("wrong", WRONG))}


def drawn(found: np.ndarray, photo: Image.Image | None, width: int) -> Image.Image:
    """In colour on the picture, pale and grey; at most `width` wide. Shrinking hides no pixel that became worse."""
    height, wide = found.shape
    size = (wide, height) if wide <= width else (width, max(1, round(height * width / wide)))
    under = photo.convert("L").resize(size) if photo else Image.new("L", size, 255)
    pale = under.point([160 + v * 90 // 255 for v in range(256)]).convert("RGB")
    for code in (IGNORED, WRONG, BETTER, WORSE):  # the last one stays on top
        mask = Image.fromarray(np.where(found == code, 255, 0).astype(np.uint8))
        if size != mask.size:
            mask = mask.resize(size, Image.Resampling.NEAREST if code == IGNORED else Image.Resampling.BOX)
        pale.paste(PALETTE[code], mask=mask.point([0] + [255] * 255))
    return pale
