"""Digests of the code behind each stage kind and row: a change without a new `version` would leave stale artifacts in stores.

`python tests/versions.py --write` records the digests after a version was raised (or where a change cannot alter any result).
"""

import ast
import hashlib
import importlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINNED = Path(__file__).with_suffix(".json")
TABLES = ("models", "sources", "kd", "engines")


def current():
    """{"stage train": [version, digest], "row models.tiny": [version, digest], ...}"""
    sys.path.insert(0, str(ROOT))
    import stages

    found = {}
    for kind, target in stages.KINDS.items():
        module, _, name = target.partition(":")
        stage = getattr(importlib.import_module(module), name)
        found[f"stage {kind}"] = [stage.version, digest(closure(ROOT / (module.replace(".", "/") + ".py")))]
    for table in TABLES:
        rows = importlib.import_module(f"stages.{table}").TABLE.rows()
        for name, row in rows.items():
            place = ROOT / "stages" / table / name
            files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
            found[f"row {table}.{name}"] = [row.version, digest({f for file in files for f in closure(file)})]
    return found


def closure(path, seen=None):
    """The file and every file of stages/ and kernels/ that it imports; rows are found by looking, so they are not among them."""
    seen = set() if seen is None else seen
    if path in seen:
        return seen
    seen.add(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for name in names(node, path):
            for candidate in (ROOT / (name.replace(".", "/") + ".py"), ROOT / name.replace(".", "/") / "__init__.py"):
                if candidate.exists() and name.split(".")[0] in ("stages", "kernels"):
                    closure(candidate, seen)
    if path.name == "__init__.py" and path.with_name("reference.py").exists():  # an operation: its variants are found by looking too
        for variant in sorted(set(path.parent.glob("*.py")) - {path.with_name("sizes.py")}):  # sizes are for measuring
            closure(variant, seen)
        seen.update(path.parent.glob("*.c*"))  # cpu.cpp, kernel.cu
    return seen


def names(node, path):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parts = path.relative_to(ROOT).parts
        base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
        module = ".".join(p for p in (base, node.module) if p)
        return [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return []


def digest(files):
    """Of what the code does: comments, docstrings and layout do not count."""
    hasher = hashlib.sha256()
    for file in sorted(files):
        if file.suffix != ".py":
            hasher.update(file.read_bytes())
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                body.pop(0)
        hasher.update(ast.dump(tree).encode())
    return hasher.hexdigest()[:16]


if __name__ == "__main__":
    if "--write" in sys.argv:
        PINNED.write_text(json.dumps(current(), indent=1) + "\n")
    print(PINNED.read_text())
