"""The commands that look after a store: `python -m pipeline store fsck | gc | pin | size`."""

import argparse
import re
from typing import Any

from . import room
from .errors import BadRecipe, BadStore
from .store import Store


def fsck(asked: argparse.Namespace, parts: Any) -> None:
    """Compares every byte with what was promised; --repair moves what is damaged to quarantine/, and the next run makes it anew."""
    from .fsck import examine

    store = _opened(asked, whole=False)
    n, t = _subset(asked.subset)
    open_ends = 0
    for finding in examine(store, n, t, asked.repair):
        print(f"{finding.where}: {finding.what}" + ("; repaired" if finding.repaired else ""))
        open_ends += not finding.repaired
    if open_ends:
        raise BadStore(f"{open_ends} problem{'s' if open_ends > 1 else ''} in {store.root}: add --repair, then run your recipe again")
    print(f"{store.root}: good" + (f" (part {n} of {t} of the artifacts)" if t > 1 else ""))


def gc(asked: argparse.Namespace, parts: Any) -> None:
    """Frees what no run and no pin needs; with --keep N only the newest N runs of each recipe count."""
    from .gc import sweep

    store = _opened(asked)
    if asked.keep is not None and asked.keep < 0:
        raise BadRecipe(f"--keep {asked.keep}: a number of runs from 0 on was expected")
    swept = sweep(store, asked.keep, asked.dry_run)
    verb = "would free" if asked.dry_run else "freed"
    if asked.dry_run:
        for name in (*swept.runs, *(id[:12] for id in swept.objects), *(str(p.relative_to(store.root)) for p in swept.others)):
            print(f"  {name}")
    print(f"{verb} {room.size(swept.bytes)}: {len(swept.objects)} artifacts, {len(swept.runs)} runs, {len(swept.others)} leftovers")
    print(
        f"{swept.kept} artifacts are needed"
        + ("" if asked.keep is not None else " (by any run; with --keep N only the newest N runs of each recipe count)")
    )


def pin(asked: argparse.Namespace, parts: Any) -> None:
    """Keeps RUN, RUN/STAGE or an artifact by its id from being swept; --off ends that; without WHAT lists what is pinned."""
    from . import pins

    store = _opened(asked)
    if asked.what is None:
        for what, ids in pins.pinned(store).items():
            print(f"{what:<28} {', '.join(id[:12] for id in ids)}")
    elif asked.off:
        pins.unpin(store, asked.what)
        print(f"{asked.what} is no longer pinned")
    else:
        ids = pins.pin(store, asked.what)
        print(f"pinned {asked.what}: {', '.join(id[:12] for id in ids)}")


def size(asked: argparse.Namespace, parts: Any) -> None:
    """How much space what takes: artifacts by kind, training state, quarantine, and what the disk has left."""
    from .gc import on_disk

    store = _opened(asked)
    kinds: dict[str, list[int]] = {}
    for folder in store.root.glob("objects/sha256/*/*"):
        kinds.setdefault(store.kind(folder.name), []).append(store.size(folder.name))
    for kind, sizes in sorted(kinds.items(), key=lambda item: -sum(item[1])):
        print(f"{kind:<12} {len(sizes):>6} {room.size(sum(sizes)):>10}")
    for name in ("state", "refs", "quarantine", "tmp", "trash"):
        print(f"{name:<12} {'':>6} {room.size(on_disk(store.root / name)):>10}")
    print(f"{'free':<12} {'':>6} {room.size(room.free_bytes(store.root)):>10}")


def _opened(asked: argparse.Namespace, whole: bool = True) -> Store:
    """`whole`: store.json must be sound; fsck is there for when it is not."""
    store = Store(asked.store, asked.allow_network_fs)
    if not (store.root / "objects").is_dir():
        raise BadRecipe(f"no store at {store.root}: name it with --store")
    return store.prepare() if whole else store.guarded()


def _subset(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    n, t = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= n <= t:
        raise BadRecipe(f"--subset {text}: n/t was expected with n from 1 to t, such as 2/7")
    return n, t
