"""A verdict as JUnit XML, which GitHub's actions, GitLab and Jenkins read: one suite per gate, one case per rule.

The form is the common subset of Jenkins' junit-10.xsd and of what GitLab's "Unit test reports" page says it parses: GitLab shows a case
under its classname and drops a second one of the same name, Jenkins groups by what stands before the last dot of classname.
A rule that could not be told is an <error>, never <skipped>: both systems leave a skipped case green, and nobody looks.
"""

from collections import Counter
from xml.etree import ElementTree

from .gating import WORDS
from .verdict import Rule, Verdict, line

MOST = 4000  # characters of a sentence


def xml(verdicts: list[Verdict]) -> str:
    root = ElementTree.Element("testsuites", name="stillhouse")
    for verdict in verdicts:
        outcomes = [rule.passed for rule in verdict.rules]
        counts = {"tests": len(outcomes), "failures": outcomes.count(False), "errors": outcomes.count(None), "skipped": 0}
        name = verdict.title
        suite = ElementTree.SubElement(root, "testsuite", name=name, **{key: str(value) for key, value in counts.items()}, time="0")
        properties = ElementTree.SubElement(suite, "properties")
        for key, value in facts(verdict).items():
            ElementTree.SubElement(properties, "property", name=key, value=value)
        for name, rule in zip(names(verdict.rules), verdict.rules, strict=True):
            _case(suite, f"{verdict.recipe}.{verdict.gate}", name, rule)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def facts(verdict: Verdict) -> dict[str, str]:
    """What a verdict is of."""
    baseline = verdict.baseline
    content = (baseline or {}).get("content") or {}
    told = "none is asked for" if baseline is None else "there is none"
    if content:
        told = f"{line(baseline.get('file'))}, run {line(content.get('run'))}"
    profile = verdict.profile or "none"
    return {"run": verdict.run, "recipe": verdict.recipe, "profile": profile, "machine": verdict.machine, "baseline": told}


def names(rules: list[Rule]) -> list[str]:
    """Each once: a rule keeps its name, and so its history, when its limit changes; two of one name take their limits into it."""
    found = [rule.name for rule in rules]
    twice = {name for name, count in Counter(found).items() if count > 1}
    found = [f"{name}, {rule.asked}" if name in twice else name for name, rule in zip(found, rules, strict=True)]
    seen: Counter = Counter()
    for k, name in enumerate(found):
        seen[name] += 1
        found[k] = f"{name} ({seen[name]})" if seen[name] > 1 else name
    return found


def _case(suite: ElementTree.Element, classname: str, name: str, rule: Rule) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=classname, name=name, time="0")
    text = rule.text[:MOST]
    if rule.passed:
        ElementTree.SubElement(case, "system-out").text = text
        return
    tag, kind = ("failure", "broken") if rule.passed is False else ("error", "undecided")
    found = f"{WORDS[rule.passed]}: found {rule.found}, asked {rule.asked}" if rule.asked else WORDS[rule.passed]
    ElementTree.SubElement(case, tag, message=found, type=kind).text = text
