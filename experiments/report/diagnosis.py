"""What `experiments.doctor` finds: a list of findings, and how it is printed."""

import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

State = Literal["ok", "attention", "broken"]
WIDTH = 100
INDENT = " " * 26


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
      subject: what was looked at.
      state: "attention" if a run works but not as its user may expect, "broken" if one would fail.
      text: what was found.
      mend: what to do; empty for "ok".
    """

    subject: str
    state: State
    text: str
    mend: str = ""


Check = Callable[[], Iterable[Finding]]


def examine(checks: dict[str, Check]) -> list[Finding]:
    """Runs all checks, by subject. One that fails is a finding too, and the others still run."""
    found: list[Finding] = []
    for subject, check in checks.items():
        try:
            found.extend(check())
        except Exception as error:  # a broken machine raises anything, and is what is looked for
            line = (str(error).strip() or "no message").splitlines()[0]
            text = f"{type(error).__name__}: {line}"
            found.append(Finding(subject, "broken", text, "send the output of --json as an issue"))
    return found


def as_text(findings: Sequence[Finding]) -> str:
    """The report for a terminal: a line for each finding, with its mend below it."""
    lines = []
    for subject, state, text, mend in findings:
        lines.append(_wrapped(f"{state:9} {subject:15} ", text))
        if mend:
            lines.append(f"{INDENT}mend: {mend}")  # whole, to be pasted
    states = [finding.state for finding in findings]
    counts = [
        f"{states.count(state)} {state}" for state in ("broken", "attention") if state in states
    ]
    return "\n".join([*lines, "", ", ".join(counts) or "everything is ok"])


def as_json(findings: Sequence[Finding]) -> str:
    """The report for an issue."""
    return json.dumps([finding._asdict() for finding in findings], indent=1)


def _wrapped(start: str, text: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=start, subsequent_indent=INDENT,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
