"""A verdict as GitHub-flavoured Markdown, for `cat runs/*/summary.md >> "$GITHUB_STEP_SUMMARY"` or a comment on a pull request.

Names and sentences come from data sets and recipes, so nothing in them may act: no link, no picture, no mention, no reference to an
issue, no HTML, no table of their own. GitHub takes 1 MiB per step; what is written here stays far below.
"""

import re
from typing import Any

from .gating import WORDS
from .junit import facts
from .verdict import RELEASED, RULES, Rule, Verdict, figure, line, reasons

FIGURES = ("found", "released", "now", "change")  # columns that stand to the right
MOST = 1200  # characters of a sentence
ACTS = re.compile(r"([\\`*_{}\[\]<>()+!|~&$])")  # ASCII punctuation that may begin something; CommonMark takes all of it escaped
LINKS = re.compile(r"(@|#|:(?=//)|www(?=\.)|\bGH(?=-\d))", re.IGNORECASE)  # found after Markdown is done, escaped or not
NOTHING = "\u200b"  # a space of no width, which ends such a word


def markdown(verdicts: list[Verdict], page: str) -> str:
    return "\n".join([*(_gate(verdict, page) for verdict in verdicts)])


def text(value: Any, most: int = MOST) -> str:
    """As it will be read, on one line, whatever it holds."""
    found = line(value)
    found = found if len(found) <= most else found[: most - 1] + "…"
    return LINKS.sub(rf"\1{NOTHING}", ACTS.sub(r"\\\1", found))


def _gate(verdict: Verdict, page: str) -> str:
    parts = [f"## {WORDS[verdict.passed]}: {text(verdict.title)}", f"{verdict.counted}."]
    parts.append(_table(("rule", "found", "asked", "outcome"), [_row(rule) for rule in verdict.rules[:RULES]]))
    if len(verdict.rules) > RULES:
        parts.append(f"{len(verdict.rules) - RULES} more rules are on the page.")
    if why := reasons(sorted(verdict.rules[:RULES], key=lambda rule: rule.passed is None)):
        parts.append("### Why\n\n" + "\n".join(f"- {text(sentence)}" for _, sentence in why))
    parts += _against(verdict)
    parts.append(f"### Where\n\n{_where(verdict)}\n\nPage: {text(page)}")
    if verdict.next:
        parts.append("### What to do\n\n```sh\n" + "\n".join(verdict.next) + "\n```")
    return "\n\n".join(parts) + "\n"


def _row(rule: Rule) -> list[str]:
    bold = "" if rule.passed else "**"
    return [text(rule.name, 200), text(rule.found), text(rule.asked, 200), f"{bold}{rule.outcome}{bold}"]


def _against(verdict: Verdict) -> list[str]:
    """What changed since the baseline was accepted: the figures that rules ask for."""
    if verdict.baseline is None:
        return []
    title = f"### Against the released one\n\nBaseline: {text(facts(verdict)['baseline'])}."
    rules = [rule for rule in verdict.rules[:RULES] if rule.against == RELEASED and None not in (rule.before, rule.now)]
    rows = [[text(rule.name.removesuffix(f" vs {RELEASED}"), 200), *_change(rule)] for rule in rules]
    return [title, _table(("figure", "released", "now", "change"), rows)] if rows else [title]


def _change(rule: Rule) -> list[str]:
    before, now = rule.before, rule.now
    ratio = f" ({now / before - 1:+.2%})" if before else ""
    return [text(figure(before)), text(figure(now)), text(f"{now - before:+.4g}{ratio}")]


def _where(verdict: Verdict) -> str:
    noisy = "; ".join(verdict.conditions)
    return text(verdict.machine) + (f". Times by the clock say nothing: {text(noisy)}" if noisy else "")


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    rule = ["---:" if title in FIGURES else "---" for title in head]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))
