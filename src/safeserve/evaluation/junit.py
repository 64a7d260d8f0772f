"""A verdict as JUnit XML: one test case a rule and one for the verdict, so that a CI server shows what failed."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from safeserve.evaluation.gate import RuleResult, Verdict

# What XML 1.0 cannot hold at all, not even escaped; names come from files.
_FORBIDDEN = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def junit_xml(verdict: Verdict) -> str:
    """The verdict in the structure that JUnit's readers share: ``testsuites`` > ``testsuite`` > ``testcase``.

    A rule that does not hold is a ``failure``; one that lacks evidence is an ``error``; one that was not applied, for
    want of a second model, is ``skipped``. The last case is the verdict: a reader who takes skipped for green still
    sees that nothing was shown.
    """
    name = f"safeserve gate: {verdict.policy.name}"
    cases = [_rule(rule, verdict) for rule in verdict.rules]
    cases.append(_case("verdict", verdict, verdict.outcome, "; ".join(verdict.reasons) or "every rule holds"))
    counts = {"tests": len(cases)}
    counts |= {kind + "s": sum(case.find(kind) is not None for case in cases) for kind in ("failure", "error")}
    counts["skipped"] = sum(case.find("skipped") is not None for case in cases)
    shown = {key: str(count) for key, count in counts.items()}
    root = ElementTree.Element("testsuites", {"name": _clean(name), **shown, "time": "0"})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _clean(name), **shown, "time": "0"})
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in (("candidate", verdict.candidate), ("against", verdict.against), ("outcome", verdict.outcome)):
        if value is not None:
            ElementTree.SubElement(properties, "property", {"name": key, "value": _clean(value)})
    suite.extend(cases)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _rule(rule: RuleResult, verdict: Verdict) -> ElementTree.Element:
    if rule.skipped:
        case = _case(rule.rule, verdict, "pass", rule.why)
        ElementTree.SubElement(case, "skipped", {"message": _clean(rule.why)})
        return case
    return _case(rule.rule, verdict, rule.outcome, rule.why)


def _case(name: str, verdict: Verdict, outcome: str, why: str) -> ElementTree.Element:
    attributes = {"name": _clean(name), "classname": _clean(f"safeserve.gate.{verdict.policy.name}"), "time": "0"}
    case = ElementTree.Element("testcase", attributes)
    if outcome != "pass":
        kind = "failure" if outcome == "fail" else "error"
        ElementTree.SubElement(case, kind, {"message": _clean(why), "type": outcome}).text = _clean(why)
    return case


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
