"""How pictures and masks lie in folders, and which of them belong together. Light: `check` and `plan` import it."""

import hashlib
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BadData
from stages.sources._files import check_relative, inside, read_named
from stages.sources._problems import Fault, Problems, printable

LONGEST = 64 << 20  # bytes of a list

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
    held_out: str | None = None  # pairs of the train split whose name begins so become the val split, which is then not in `splits`

    def home(self) -> Path:
        """The root without symbolic links; BadData if there is no such folder."""
        try:
            path = Path(self.root).expanduser()
            if path.is_dir():
                return path.resolve()
            found = "is not a folder"
        except (OSError, RuntimeError, ValueError) as error:  # no right to look, too long a name; ~ of nobody; NUL
            found = f"cannot be looked at ({getattr(error, 'strerror', None) or error})"
        raise BadData(printable(f"source.root: {self.root} {found}: give the folder that holds {self.images}"))

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
        if self.held_out:
            found |= self.parted(found["train"], problems)
        tell_shared(found, problems)
        tell_alike(found, problems)
        return found

    def parted(self, pairs: list[Pair], problems: Problems) -> dict[str, list[Pair]]:
        held = [pair for pair in pairs if pair[0].startswith(self.held_out)]
        rest = [pair for pair in pairs if not pair[0].startswith(self.held_out)]
        if not held or not rest:
            begins = sorted({re.match(r"[^_]*", pair[0])[0] for pair in pairs})
            fault = Fault(f"{len(held)} of {len(pairs)} pictures begin with {self.held_out}", f"name one of {', '.join(begins[:8])}")
            problems.add(self.lists or self.images, fault)
        return {"train": rest, "val": held}

    def pair(self, home: Path, split: str, problems: Problems) -> list[Pair]:
        links = None if self.lists else problems  # what a list does not name may lie anywhere
        images, labels = (find(home, pattern, split, problems, links) for pattern in (self.images, self.labels))
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
            asked = (self.lists or self.images).replace("{split}", split)
            problems.add(asked, Fault(f"split {split} is empty", f"root holds {names_in(home)}; correct the pattern or splits"))
        return pairs


def tell_shared(found: dict[str, list[Pair]], problems: Problems) -> None:
    """A picture belongs to one split, and a label to one picture."""
    owner: dict[str, tuple[str, str]] = {}
    for split, pairs in found.items():
        for _, image, label in pairs:
            other, _ = owner.setdefault(image, (split, image))
            if other != split:
                problems.add(image, Fault(f"stands in {other} and in {split}", "a picture belongs to one split: correct the lists"))
            _, other = owner.setdefault(label, (split, image))
            if other != image:
                problems.add(label, Fault(f"the label of {other} and of {image}", "give each its own: is {split} missing in labels?"))


def tell_alike(found: dict[str, list[Pair]], problems: Problems) -> None:
    """Two names that other file systems take for one: there, a copy of the data would hold only one of the files."""
    for kind in (1, 2):
        first: dict[str, str] = {}
        for pair in (pair for pairs in found.values() for pair in pairs):
            other = first.setdefault(unicodedata.normalize("NFC", pair[kind]).casefold(), pair[kind])
            if other != pair[kind]:
                problems.add(pair[kind], Fault(f"differs from {other} only in case or in how accents are written", "rename one of them"))


def check_pattern(pattern: str) -> str:
    """For pydantic: a pattern stays inside its root and can be told apart by {stem}."""
    if "{stem}" not in pattern:
        raise ValueError('a pattern needs {stem}, such as "{split}/images/{stem}.jpg"')
    unknown = set(re.findall(r"\{[^{}]*\}", pattern)) - {"{split}", "{stem}"}
    if unknown:
        raise ValueError(f"only {{split}} and {{stem}} are filled in, not {', '.join(sorted(unknown))}")
    check_relative(pattern)
    return pattern


def find(root: Path, pattern: str, split: str, problems: Problems | None = None, links: Problems | None = None) -> dict[str, list[str]]:
    """stem -> paths relative to root that match; hidden files are passed over, links to folders are not followed.

    What cannot be listed is told to `problems`, a folder that is passed over because it is a link to `links`.
    """
    pattern = pattern.replace("{split}", split)
    fixed = re.split(r"[*{]", pattern)[0].rpartition("/")[0]
    if not inside(root, os.path.join(os.path.realpath(root / fixed), "")):  # what lies elsewhere is not even listed
        if problems:
            problems.add(fixed, Fault("a symbolic link leads out of the root", "put the folder itself there, or make its parent the root"))
        return {}
    matches = matcher(pattern)
    found: dict[str, list[str]] = {}
    for folder, folders, files in os.walk(root / fixed, onerror=lambda error: tell_unlisted(root, error, problems)):
        folders.sort()
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        at = "" if below == "." else f"{below}/"
        for file in sorted(files):
            match = not file.startswith(".") and matches(at + file)
            if match:
                found.setdefault(match["stem"], []).append(at + file)
        for name in folders if links else ():
            if not name.startswith(".") and os.path.islink(os.path.join(folder, name)):
                links.add(at + name, Fault("a link to a folder, which is not followed", "put the folder itself there, or give lists"))
    return found


def matcher(pattern: str):
    """path -> match with the group stem, or None."""
    parts, seen = [], False
    for piece in re.split(r"(\{stem\}|\*)", pattern):
        parts.append({"{stem}": "(?P=stem)" if seen else "(?P<stem>.+)", "*": "[^/]*"}.get(piece) or re.escape(piece))
        seen = seen or piece == "{stem}"
    return re.compile("".join(parts), re.DOTALL).fullmatch


def tell_unlisted(root: Path, error: OSError, problems: Problems | None) -> None:
    if problems and not isinstance(error, FileNotFoundError):  # a folder that is not there is an empty split
        path = os.path.relpath(error.filename, root).replace(os.sep, "/")
        problems.add(path, Fault(f"cannot be listed ({error.strerror})", "check permissions and the disk"))


def names_in(root: Path) -> str:
    try:
        return ", ".join(sorted(os.listdir(root))[:8]) or "nothing"
    except OSError as error:
        return f"what cannot be listed ({error.strerror})"


def read_stems(root: Path, path: str, problems: Problems) -> list[str]:
    """The lines of a list. A stem that leads out of the root, or comes twice, is a problem."""
    try:
        lines = read_named(root, path, LONGEST).decode("utf-8-sig").split("\n")
    except Fault as fault:
        problems.add(path, Fault(f"the list cannot be read: {fault.what}", "write a UTF-8 text file with one stem per line"))
        return []
    except UnicodeDecodeError:
        problems.add(path, Fault("the list cannot be read: it is not UTF-8", "write a UTF-8 text file with one stem per line"))
        return []
    stems: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        stem = line.strip(" \t\r")  # no other blanks: a control character stays, and is told
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
        except (OSError, ValueError):  # ValueError: NUL in a name
            line = f"{name}\0missing\n"
        total.update(line.encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def chosen(items: list, limit: int | None, key=str) -> list:
    """The first `limit` in a fixed pseudo-random order, in their old order: a small set that still shows everything."""
    if limit is None or limit >= len(items):
        return list(items)
    order = sorted(range(len(items)), key=lambda i: hashlib.sha256(key(items[i]).encode("utf-8", "surrogateescape")).digest())
    return [items[i] for i in sorted(order[:limit])]
