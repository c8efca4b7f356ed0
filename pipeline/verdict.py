"""A verdict for somebody in a hurry: on one screen, what each rule found and asked, why one does not hold, and what to type next.

What a rule speaks of is the business of stages; here are only read the fields of an entry of verdict.json: metric, of, against, limit,
value, value_of, value_against, passed, text, and `problem`, which several undecided rules may share.
"""

import shlex
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from os import get_terminal_size
from pathlib import Path
from typing import Any

from . import finding, released
from .gating import WORDS
from .manifest import Damaged
from .show import plain, tell_styled
from .store import Store

STYLES = {True: "green", False: "bold red", None: "yellow"}
LINES = 24  # of a screen
COLUMNS = 100  # of a log; a terminal may have fewer
RELEASED = "released"  # as rules call the committed baseline
RULES = 200  # that files and screens name; a gate of more is judged all the same


@dataclass(frozen=True)
class Rule:
    """One line of a verdict, every text made harmless for terminals."""

    name: str  # "cpu_p50_ms of engine vs released"
    found: str
    asked: str
    passed: bool | None
    text: str
    problem: str  # why it cannot be told; several rules may say the same
    against: str
    before: float | None
    now: float | None
    low_power: bool  # it holds, and a loss as large as is allowed might have passed unseen

    @property
    def outcome(self) -> str:
        return WORDS[self.passed] + (", low power" if self.low_power else "")


@dataclass(frozen=True)
class Verdict:
    """What one gate says of one run."""

    gate: str
    run: str  # "": none was noted, in a store that cannot be written to
    recipe: str
    profile: str | None
    file: str  # of the recipe
    passed: bool | None
    rules: list[Rule]
    baseline: dict[str, Any] | None  # released.Released.told() of that day; None where no rule speaks of it
    machine: str
    conditions: list[str]  # why times by the clock say nothing; [] where they do, or none was taken
    next: list[str]  # commands that help

    @property
    def title(self) -> str:
        return f"{self.gate} of {self.run or self.recipe}" + (f" ({self.profile} profile)" if self.profile else "")

    @property
    def counted(self) -> str:
        """E.g. `1 of 5 rules FAILED, 1 undecided`"""
        total = f"{len(self.rules)} rule{'s' if len(self.rules) > 1 else ''}"
        outcomes = [rule.passed for rule in self.rules]
        broken = [(outcomes.count(passed), WORDS[passed]) for passed in (False, None) if passed in outcomes]
        if not broken:
            return f"{total} hold{'s' if len(self.rules) == 1 else ''}"
        (count, word), *more = broken
        return ", ".join([f"{count} of {total} {word}", *(f"{count} {word}" for count, word in more)])


def read(told: Any, gate: str, run: str, begin: dict[str, Any], store: Store) -> Verdict:
    """`told`: what verdict.json holds; `begin`: how the run began, as its journal has it. What cannot be read has not passed."""
    told = told if isinstance(told, dict) else {}
    rules = [_rule(entry) for entry in _entries(told)]
    outcomes = [rule.passed for rule in rules]
    passed = False if False in outcomes else None if None in outcomes or told.get("passed") is not True else True
    baseline = told.get("released") if isinstance(told.get("released"), dict) else None
    conditions = told["conditions"] if isinstance(told.get("conditions"), list) else []
    return Verdict(
        gate=line(gate),
        run=run,
        recipe=line(begin["recipe"]),
        profile=line(begin["profile"]) if begin.get("profile") else None,
        file=line(begin["file"]),
        passed=passed,
        rules=rules,
        baseline=baseline,
        machine=line(told.get("machine") or "not known"),
        conditions=[line(text) for text in conditions],
        next=_next(passed, run, begin, baseline, store),
    )


def show(verdict: Verdict) -> bool | None:
    """Prints it, in colour on a terminal, what does not hold last; returns the outcome."""
    tell_styled(screen(verdict, _columns()))
    return verdict.passed


def screen(verdict: Verdict, columns: int = COLUMNS) -> list[tuple[str, str]]:
    """Lines and their styles: at most 24 for a gate of up to a dozen rules."""
    lines = [(f"{verdict.title}: {WORDS[verdict.passed]}, {verdict.counted}"[:columns], STYLES[verdict.passed])]
    rules = sorted(verdict.rules, key=lambda rule: {True: 0, None: 1, False: 2}[rule.passed])
    lines += _table(rules[-RULES:], max(columns, 80))  # narrower, a row takes two lines: a name cut short could be any rule's
    commands = [(f"  {command}", "") for command in verdict.next]
    room = max(LINES - len(lines) - len(commands) - bool(commands), 3)
    lines += _sentences(rules, columns, room)
    return lines + ([("next:", "bold"), *commands] if commands else [])


def reasons(rules: list[Rule]) -> list[tuple[bool | None, str]]:
    """(outcome, sentence) of rules that do not hold; those that cannot be told for one reason share one sentence."""
    count = Counter(rule.problem for rule in rules if not rule.passed and rule.problem)
    shared = [problem for problem, rules_of_it in count.items() if rules_of_it > 1]
    found = [(None, f"{count[problem]} rules cannot be told: {problem}") for problem in shared]
    return found + [(r.passed, f"{WORDS[r.passed]}: {r.text}") for r in rules if not r.passed and r.problem not in shared]


def figure(value: Any, limits: str = "") -> str:
    """Of as few digits as show on which side of its limits it lies: 0.99895 against `at_least 0.999` is not 0.999."""
    value = _number(value)
    if value is None:
        return "-"
    bounds = [number for word in limits.replace(",", " ").split() if (number := _number(word)) is not None]
    for digits in (4, 6, 9):
        text = f"{value:.{digits}g}"
        if all((float(text) > bound) == (value > bound) and (float(text) < bound) == (value < bound) for bound in bounds):
            return text
    return repr(value)


def line(text: Any) -> str:
    """Harmless on a terminal, in XML and in a table: one line without control characters."""
    return " ".join(plain(str(text)).split())


def _entries(told: dict[str, Any]) -> list[dict[str, Any]]:
    entries = told.get("rules")
    if isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries):
        return entries
    return [{"passed": False, "text": "the verdict cannot be read or holds no rule"}]


def _rule(entry: dict[str, Any]) -> Rule:
    words = {key: line(entry[key]) if entry.get(key) is not None else "" for key in ("metric", "of", "against", "limit", "text", "problem")}
    name = words["metric"] + (f" of {words['of']}" if words["of"] else "") + (f" vs {words['against']}" if words["against"] else "")
    limits = words["limit"]
    passed = entry["passed"] if "passed" in entry and entry["passed"] in (True, None) else False
    numbers = [_number(entry.get(key)) for key in ("value_against", "value_of")]
    found = figure(entry.get("value"), limits)
    text, problem = words["text"] or "a rule without a text", words["problem"]
    low_power = passed is True and entry.get("low_power") is True
    return Rule(name or text[:60], found, limits, passed, text, problem, words["against"], *numbers, low_power)


def _table(rules: list[Rule], columns: int) -> list[tuple[str, str]]:
    low = {True: " (low power)", False: ""}
    found = max(len(rule.found) for rule in rules)
    asked = max(len(rule.asked + low[rule.low_power]) for rule in rules)
    left = max(columns - 2 - 10 - found - 2 - asked - 2, 12)
    name = min(max(len(rule.name) for rule in rules), left)
    rows = []
    for rule in rules:
        row = f"  {WORDS[rule.passed]:<9} {_clipped(rule.name, name):<{name}}  {rule.found:>{found}}  {rule.asked}{low[rule.low_power]}"
        rows.append((row.rstrip(), "" if rule.passed else STYLES[rule.passed]))
    return rows


def _sentences(rules: list[Rule], columns: int, room: int) -> list[tuple[str, str]]:
    """Whole sentences, as many as there is room for. What is broken comes last."""
    wrap = textwrap.TextWrapper(columns, subsequent_indent="  ", break_on_hyphens=False)
    blocks = [[(line, STYLES[passed]) for line in wrap.wrap(text)] for passed, text in reasons(rules)]
    kept: list[list[tuple[str, str]]] = []
    for block in reversed(blocks):
        if len(block) > room - (1 if len(kept) + 1 < len(blocks) else 0):
            break
        kept.insert(0, block)
        room -= len(block)
    left = len(blocks) - len(kept)
    return ([(f"{left} more: summary.md and the page have them in words", "")] if left else []) + [line for block in kept for line in block]


def _next(passed: bool | None, run: str, begin: dict[str, Any], baseline: dict[str, Any] | None, store: Store) -> list[str]:
    """What to type now."""
    if passed or not run:
        return []
    content = (baseline or {}).get("content")
    ids = content.get("artifacts") if isinstance(content, dict) else None
    place = released.place(Path(begin["file"]), begin["recipe"], begin.get("profile"))
    own = bool(baseline) and baseline.get("file") == f"{place.parent.name}/{place.name}"  # not one that --baseline named
    accept = command(store, "gate", run, "--accept")
    if passed is None and baseline and not content:
        return [f"{accept}   # if this run is what others shall be held against"] if own else []
    if passed is None:
        missing = [id for id in ids or () if not _held(store, id)]
        profile = ["--profile", begin["profile"]] if begin.get("profile") else []
        again = command(store, "run", begin["file"], *profile, *(word for one in begin.get("sets", ()) for word in ("--set", one)))
        file = Path(begin["file"]).parent / str(baseline["file"]) if missing else Path()
        pulled = [str(file)] if file.is_file() else [id[:12] for id in missing]
        return [*(command(store, "store", "pull", "DIR", what) for what in pulled), again] if missing else []
    other = _compared(store, run, begin["recipe"], content)
    meant = [f"{accept}   # only if this loss is meant"] if own else []
    return ([command(store, "diff", other, run)] if other else []) + meant


def _compared(store: Store, run: str, recipe: str, content: dict[str, Any] | None) -> str | None:
    """The accepted run, where it is in this store (a name alone may be another machine's); else the last one that passed."""
    runs = [name for name in sorted(store.runs(recipe), key=store.sequence, reverse=True) if name != run]
    if content and content.get("run") in runs:
        made = {entry["id"] for entry in finding.stages(store, content["run"]).values()}
        if made & set(content["artifacts"]):
            return content["run"]
    return next((name for name in runs if (entries := store.journal(name).read()) and entries[-1].get("code") == 0), None)


def _held(store: Store, id: str) -> bool:
    try:
        return bool(store.manifest(id))
    except Damaged:
        return False


def command(store: Store, *words: str) -> str:
    """To be typed in the folder where this one was, for the same store."""
    elsewhere = ["--store", str(store.root)] if store.root.absolute() != Path(".stillhouse").absolute() else []
    return "python -m pipeline " + " ".join(word if word == "DIR" else shlex.quote(line(word)) for word in (*words, *elsewhere))


def _columns() -> int:
    try:
        return max(60, min(COLUMNS, get_terminal_size(sys.stdout.fileno()).columns)) if sys.stdout.isatty() else COLUMNS
    except (OSError, ValueError):
        return COLUMNS


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
