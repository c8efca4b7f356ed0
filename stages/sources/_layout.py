"""How pictures and masks lie in folders, and which of them belong together. Light: `check` and `plan` import it."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BadData
from stages.sources._problems import Fault, Problems, printable

Pair = tuple[str, str, str]  # name, path of the image, path of the label; paths relative to the root


@dataclass(frozen=True)
class Layout:
    """Patterns are relative to `root`; {split} is filled in, {stem} tells pairs apart, * stands for anything inside one name."""

    root: str
    images: str
    labels: str
    splits: tuple[str, ...]
    lists: str | None = None  # pattern of a text file with one stem per line; without it, every file that matches
    tables: tuple[str, ...] = ()  # further files that are read, relative to the root or absolute

    def home(self) -> Path:
        """The root without symbolic links; BadData if there is no such folder."""
        path = Path(self.root).expanduser()
        if not path.is_dir():
            raise BadData(f"source.root: {printable(str(path))} is not a folder: give the folder that holds {self.images}")
        return path.resolve()

    def outside(self) -> dict[str, str]:
        """One digest over relative path, size, mtime and ctime of every file that may be read."""
        home = self.home()
        names = {str(table) for table in self.tables}
        for split in self.splits:
            for pattern in (self.images, self.labels):
                names.update(path for paths in find(home, pattern, split).values() for path in paths)
            if self.lists:
                names.add(self.lists.replace("{split}", split))
        return {"files": digest(home, sorted(names))}

    def pairs(self, problems: Problems) -> dict[str, list[Pair]]:
        """The pairs of each split in the order of its list, or sorted; what cannot be paired goes to `problems`."""
        home = self.home()
        found = {split: self.pair(home, split, problems) for split in self.splits}
        where: dict[str, str] = {}
        for split, pairs in found.items():
            for _, image, _ in pairs:
                if where.setdefault(image, split) != split:
                    problems.add(
                        image, Fault(f"stands in {where[image]} and in {split}", "a picture belongs to one split: correct the lists")
                    )
        return found

    def pair(self, home: Path, split: str, problems: Problems) -> list[Pair]:
        images, labels = find(home, self.images, split), find(home, self.labels, split)
        for paths in [*images.values(), *labels.values()]:
            if len(paths) > 1:
                problems.add(paths[0], Fault(f"{paths[1]} matches the same pattern and stem", "keep one of them"))
        if self.lists:
            stems = read_stems(home, self.lists.replace("{split}", split), problems)
        else:
            stems = sorted(images)
            for stem in sorted(set(labels) - set(images)):
                wanted = self.images.replace("{split}", split).replace("{stem}", stem)
                problems.add(labels[stem][0], Fault(f"a label without its image {wanted}", "add the image or remove the label"))
        pairs = []
        for stem in stems:
            for kind, pattern, paths in (("image", self.images, images), ("label", self.labels, labels)):
                if stem not in paths:
                    wanted = pattern.replace("{split}", split).replace("{stem}", stem)
                    by = f"named in {self.lists.replace('{split}', split)}" if self.lists else f"needed by {images[stem][0]}"
                    problems.add(wanted, Fault(f"there is no such {kind}, {by}", "add it, or leave the pair out"))
            if stem in images and stem in labels:
                pairs.append((stem, images[stem][0], labels[stem][0]))
        if not stems:
            asked = self.lists or self.images
            there = ", ".join(sorted(entry.name for entry in os.scandir(home))[:8]) or "nothing"
            problems.add(
                asked.replace("{split}", split), Fault(f"split {split} is empty", f"root holds {there}; correct the pattern or splits")
            )
        return pairs


def check_pattern(pattern: str) -> str:
    """For pydantic: a pattern stays inside its root and can be told apart by {stem}."""
    if "{stem}" not in pattern:
        raise ValueError('a pattern needs {stem}, such as "{split}/images/{stem}.jpg"')
    unknown = set(re.findall(r"\{[^{}]*\}", pattern)) - {"{split}", "{stem}"}
    if unknown:
        raise ValueError(f"only {{split}} and {{stem}} are filled in, not {', '.join(sorted(unknown))}")
    check_relative(pattern)
    return pattern


def check_relative(path: str) -> str:
    """Paths inside lists, patterns and indexes are relative and stay below their root."""
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or ".." in parts or len(path.encode("utf-8", "surrogateescape")) > 1024:
        raise ValueError(f"{printable(path)!r} must be a path relative to the root, with / and without ..")
    if not path.isprintable() or any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts):
        raise ValueError(f"{printable(path)!r} holds control characters or a name of more than 255 bytes")
    return path


def find(root: Path, pattern: str, split: str) -> dict[str, list[str]]:
    """stem -> paths relative to root that match; hidden files are passed over, links to folders are not followed."""
    pattern = pattern.replace("{split}", split)
    fixed = re.split(r"[*{]", pattern)[0].rpartition("/")[0]
    parts, seen = [], False
    for piece in re.split(r"(\{stem\}|\*)", pattern):
        parts.append({"{stem}": "(?P=stem)" if seen else "(?P<stem>.+)", "*": "[^/]*"}.get(piece) or re.escape(piece))
        seen = seen or piece == "{stem}"
    matches = re.compile("".join(parts)).fullmatch
    found: dict[str, list[str]] = {}
    for folder, folders, files in os.walk(root / fixed):
        folders.sort()
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        for file in sorted(files):
            path = file if below == "." else f"{below}/{file}"
            match = not file.startswith(".") and matches(path)
            if match:
                found.setdefault(match["stem"], []).append(path)
    return found


def read_stems(root: Path, path: str, problems: Problems) -> list[str]:
    """The lines of a list. A stem that leads out of the root, or comes twice, is a problem."""
    try:
        lines = (root / path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.add(path, Fault(f"the list cannot be read ({type(error).__name__})", "write a UTF-8 text file with one stem per line"))
        return []
    stems: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        stem = line.strip()
        if not stem:
            continue
        try:
            check_relative(stem)
        except ValueError as error:
            problems.add(f"{path} line {number}", Fault(str(error), "write the stem alone"))
            continue
        if stem in stems:
            problems.add(f"{path} line {number}", Fault(f"{stem} stands in the list twice", "keep one line"))
        stems[stem] = None
    return list(stems)


def digest(root: Path, names: list[str]) -> str:
    """Over what the file system says of the files; it can only cause a new look, never prove that content is unchanged."""
    total = hashlib.sha256()
    for name in names:
        try:
            stat = os.stat(root / name)
            line = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\n"
        except OSError:
            line = f"{name}\0missing\n"
        total.update(line.encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def chosen(items: list, limit: int | None, key=str) -> list:
    """The first `limit` in a fixed pseudo-random order, in their old order: a small set that still shows everything."""
    if limit is None or limit >= len(items):
        return list(items)
    order = sorted(range(len(items)), key=lambda i: hashlib.sha256(key(items[i]).encode("utf-8", "surrogateescape")).digest())
    return [items[i] for i in sorted(order[:limit])]
