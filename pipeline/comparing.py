"""`diff RUN RUN`: what was changed between two runs, and what came of it."""

import argparse
import json
from typing import Any

from . import finding
from .keys import differences
from .report import figures
from .store import Store


def diff(asked: argparse.Namespace, parts: Any) -> None:
    """What differs between two runs: recipe fields, artifacts, figures."""
    store = Store(asked.store)
    one, two = (finding.run_named(store, r) for r in (asked.one, asked.two))
    found = differences(finding.begin(store, one)["resolved"], finding.begin(store, two)["resolved"])
    print("recipe:" if found else "recipe: the same")
    for path, before, after in found:
        print(f"  {path}: {json.dumps(before)} -> {json.dumps(after)}")
    stages = [finding.stages(store, r) for r in (one, two)]
    print("artifacts:")
    for name in dict.fromkeys((*stages[0], *stages[1])):
        ids = [(s.get(name) or {}).get("id") for s in stages]
        print(f"  {name:<12} " + ("the same" if ids[0] == ids[1] else f"{(ids[0] or 'none')[:12]} -> {(ids[1] or 'none')[:12]}"))
    print("figures:")
    before, after = (figures(store, s) for s in stages)
    for path in dict.fromkeys((*before, *after)):
        a, b = before.get(path), after.get(path)
        if a != b:
            change = f"  ({b - a:+.4g})" if isinstance(a, int | float) and isinstance(b, int | float) else ""
            print(f"  {path}: {_figure(a)} -> {_figure(b)}{change}")


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
