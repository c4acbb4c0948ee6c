"""Medians, spread and ratios of the runs; as a Markdown page and a plot."""

from __future__ import annotations

import os
import platform
import statistics
from html import escape
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Sequence

from benchmarks.daemon import Finding
from benchmarks.draining import BARE, DURABLE, LIMIT, ONCE, Contestant, Drained, Results

Measure = Callable[[Drained], float]

MEASURES: Dict[str, Measure] = {
    "events a second": lambda run: run.rate,
    "events per CPU second": lambda run: 1 / run.cpu,
    "bytes written": lambda run: 1 / max(run.written, 1),
}
"""Figures of a run of which more is better."""
COMPARED = (
    ("events a second", BARE),
    ("events per CPU second", BARE),
    ("events per CPU second", DURABLE),
    ("bytes written", DURABLE),
)
FLUENT_BIT = 0.31
"""CPU that Fluent Bit 5.1 with filesystem storage took for events of 160 KB beside the same loop,
as part of the loop's (0.83 of 2.5 to 2.7 s per 1000)."""
SIZES = {"large": "Events of 160 KB", "small": "Events of 1 KB"}


def ratios(results: Mapping[str, Results]) -> Dict[str, float]:
    """How many times better ``run --once`` is than the baselines; medians over the rounds.

    Each round compares runs made within the same minute, so a slow spell of the machine hits both
    sides. Left out is what depends on the machine's disk rather than on us: the speed beside the
    durable script, which waits for the disk twice an event. results: large and small -> the runs
    of each contestant.
    """
    return {
        f"{size}: {what}, times better than the {baseline.name}": times(
            runs, baseline, MEASURES[what]
        )
        for size, runs in results.items()
        for what, baseline in COMPARED
        if baseline.name in runs
    }


def findings(results: Mapping[str, Results]) -> List[Finding]:
    """What is asked of draining a database."""
    rate = MEASURES["events a second"]
    found = []
    if "large" in results:
        runs = results["large"]
        written = statistics.median(run.written for run in runs[ONCE.name])
        cpu = 1 / times(runs, BARE, MEASURES["events per CPU second"])
        found += [
            Finding("160 KB: events/s, times the bare loop", times(runs, BARE, rate), "", ">= 3"),
            Finding("160 KB: events/s, times the script", times(runs, DURABLE, rate), "", ">= 6"),
            Finding("160 KB: CPU, part of the bare loop's", cpu, "", f"<= {FLUENT_BIT}"),
            Finding("160 KB: written when draining", written, "bytes per event", "<= 500"),
        ]
    if "small" in results:
        ratio = times(results["small"], BARE, rate)
        found.append(Finding("1 KB: events/s, times the bare loop", ratio, "", ">= 3"))
    return found


def line(finding: Finding) -> str:
    """A finding as a row of a Markdown table."""
    verdict = "" if not finding.bound else "reached" if finding.good else "**missed**"
    bound = finding.bound.replace("<=", "≤").replace(">=", "≥")
    what = f"{finding.what} ({finding.note})" if finding.note else finding.what
    return f"| {what} | {_number(finding.value)} {finding.unit} | {bound} | {verdict} |"


def page(results: Mapping[str, Results], found: Sequence[Finding], command: str) -> str:
    """The Markdown of a whole session."""
    lines = [
        "# Benchmarks",
        "",
        f"`{command}` on {_machine()}.",
        "",
        "Everything ran on this one machine, in turn, over loopback; only ratios taken in one run",
        "carry over to another machine, medians over the rounds. The uploader is the real",
        "program with every default: durable outbox with `synchronous=FULL`, and receipts.",
        "The bare loop is `json.dumps` and `requests.post` on a session, and keeps nothing; the",
        "durable script copies each payload into an SQLite outbox first and commits per event.",
        "CPU is without that of a run over an empty database; the receiver's own load shows that",
        "it is not what limits the others.",
        "",
    ]
    for size, runs in results.items():
        lines += [f"## {SIZES[size]}", "", *_table(runs), ""]
    if results:
        lines += ["![Events a second of each program](latest.svg)", ""]
    lines += ["## Asked for and measured", "", "| | measured | asked for | |", "|---|--:|--:|---|"]
    lines += [line(finding) for finding in found]
    return "\n".join(lines) + "\n"


def plot(results: Mapping[str, Results]) -> str:
    """Bars of the events a second as SVG: the median, with a whisker from least to most."""
    left, width, bar, gap = 300, 460, 22, 12
    parts: List[str] = []
    y = 10
    for size, runs in results.items():
        most = max(run.rate for each in runs.values() for run in each)
        parts.append(
            f'<text x="10" y="{y + 18}" class="title">{SIZES[size]}: events a second</text>'
        )
        y += 32
        for name, each in runs.items():
            rates = [run.rate for run in each]
            scale = width / most
            median = statistics.median(rates) * scale
            low, high = left + min(rates) * scale, left + max(rates) * scale
            middle = y + bar / 2
            kind = "ours" if name.startswith("se3-uploader") else "other"
            parts += [
                f'<text x="{left - 10}" y="{middle + 5}" text-anchor="end">{escape(name)}</text>',
                f'<rect x="{left}" y="{y}" width="{median:.1f}" height="{bar}" class="{kind}"/>',
                f'<path d="M{low:.1f} {middle}H{high:.1f}" class="whisker"/>',
                f'<text x="{high + 8:.1f}" y="{middle + 5}">{statistics.median(rates):,.0f}</text>',
            ]
            y += bar + gap
        y += 12
    style = (
        "text{font:14px sans-serif;fill:#333}.title{font-weight:bold}.ours{fill:#1f77b4}"
        ".other{fill:#b8c4ce}.whisker{stroke:#333;stroke-width:2}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="860" height="{y}">'
        f'<style>{style}</style><rect width="860" height="{y}" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def times(runs: Results, baseline: Contestant, measure: Measure, ours: str = ONCE.name) -> float:
    """How many times the baseline's figure ours is; the median over the rounds."""
    pairs = zip(runs[ours], runs[baseline.name])
    return statistics.median(measure(our) / measure(base) for our, base in pairs)


def _table(runs: Results) -> List[str]:
    lines = [
        "| | events/s (least-most) | × bare | CPU s per 1000 | peak RSS | written per event"
        " | receiver busy |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, each in runs.items():
        rates = [run.rate for run in each]
        rate, cpu, rss, written, busy = (statistics.median(column) for column in zip(*each))
        times_bare = times(runs, BARE, MEASURES["events a second"], name)
        cells = [
            name,
            f"{rate:,.0f} ({min(rates):,.0f}-{max(rates):,.0f})",
            f"{times_bare:.2f}",
            f"{cpu:.2f}",
            f"{rss / 1e6:.0f} MB",
            f"{written:,.0f} B",
            f"{busy:.0%}",
        ]
        if name == LIMIT.name:
            cells[3:6] = ["–"] * 3
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _machine() -> str:
    """The processor, the number of cores, and Python."""
    model = "an unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Hardware")):
            model = line.partition(":")[2].strip()
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}"
