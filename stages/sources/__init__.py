"""Where pictures and labels come from: one row per source, and the contract they share."""

from pathlib import Path
from typing import Any

from pipeline.table import Row, Table


class Source(Row):
    """Settings of one source. Two forms of artifact come out of write(), and stages/samples.py reads both:

    - pixels: `<split>_images.npy` (N, H, W, 3) and `<split>_labels.npy` (N, H, W), uint8, for what is drawn or unpacked;
    - index:  `index.json`, for files that stay where they are (`root` in `beside`), each with its sha256.
    """

    def outside(self) -> dict[str, str]:
        """What lies outside the store and is read by write(): name -> digest of a listing."""
        return {}

    def class_count(self) -> int | None:
        """How many classes there will be, where the settings alone tell; None where files of the data do."""
        return None

    def write(self, out: Path, size: tuple[int, int] | None, limit: int | None, job: Any) -> tuple[dict, dict]:
        """Checks everything, fills `out`, and returns (facts, beside). `size` is (height, width), None for native."""
        raise TypeError(f"{type(self).__name__} does not define write()")


TABLE = Table(__name__)
