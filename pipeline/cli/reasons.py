"""Lists of many reasons: like ones are grouped, and the most frequent groups are printed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console

from pipeline.errors import first_few

MAX_REASONS = 10
"""Groups of like reasons that are printed without `--all`."""
MAX_ALIKE = 3
"""Like problems that `verify` prints without `--all`."""
_NAMED = 5  # of `first_few`
_DIFFERS = re.compile(r"'[^']*'|\"[^\"]*\"|(?<![\w/])/[^\s:;,()]+|\d[\d,._]*")


@dataclass(frozen=True)
class Reason:
    """A reason, or a group of reasons that differ only in names and numbers.

    Attributes:
        text: The reason; what differs within a group is an ellipsis.
        count: Number of utterances.
        ids: Their ids; empty if they are not known here.
    """

    text: str
    count: int
    ids: tuple[str, ...] = ()


def without_details(text: str) -> str:
    """Replace what differs between like messages by an ellipsis: quoted texts, paths, numbers."""
    return _DIFFERS.sub("…", text)


def grouped(reasons: Iterable[Reason]) -> list[Reason]:
    """Group reasons that differ only in quoted texts, paths and numbers, most frequent first."""
    members: defaultdict[str, list[Reason]] = defaultdict(list)
    for reason in reasons:
        members[without_details(reason.text)].append(reason)
    groups = [
        Reason(
            alike[0].text if len({reason.text for reason in alike}) == 1 else pattern,
            sum(reason.count for reason in alike),
            tuple(name for reason in alike for name in reason.ids),
        )
        for pattern, alike in members.items()
    ]
    return sorted(groups, key=lambda group: -group.count)


def show_reasons(
    console: Console, reasons: Sequence[Reason], show_all: bool, command: str, label: str = ""
) -> None:
    """Print reasons, one a line.

    Args:
        console: Where to print.
        reasons: The reasons, not grouped.
        show_all: Print each utterance with its reason, or each reason if the utterances are not
            known; otherwise the most frequent groups.
        command: Command that prints all.
        label: Word before each count.
    """
    if show_all:
        lines = []
        for reason in reasons:
            lines += [f"  {name}: {reason.text}" for name in reason.ids]
            if not reason.ids:
                lines.append(f"  {label}{reason.count:,}: {reason.text}")
        print_lines(console, lines)
        return
    groups = grouped(reasons)
    for group in groups[:MAX_REASONS]:
        names = f" ({first_few(group.ids)})" if group.ids else ""
        console.print(f"  {label}{group.count:,}: {group.text}{names}", markup=False)
    rest = groups[MAX_REASONS:]
    if rest:
        n_left = sum(group.count for group in rest)
        console.print(f"  {label}{n_left:,}: for {len(rest):,} other reasons")
    n_named = sum(len(group.ids) for group in groups)
    is_cut = any(len(group.ids) > _NAMED for group in groups)
    if is_cut or rest or len(groups) < len(reasons):
        what = f"{n_named:,} utterances" if n_named else f"{len(reasons):,} reasons"
        console.print(f"  `{command}` lists all {what}", markup=False)


def print_lines(console: Console, lines: Sequence[str], style: str | None = None) -> None:
    """Print lines at once, which takes a tenth of the time of one by one."""
    if lines:
        console.print("\n".join(lines), style=style, markup=False)


def show_alike(
    console: Console,
    problems: Iterable[tuple[str, str]],
    show_all: bool,
    command: str,
    style: str | None = None,
) -> None:
    """Print problems, one a line; of like problems the first ones.

    Args:
        console: Where to print.
        problems: For each the thing that has it, and the problem.
        show_all: Whether to print each.
        command: Command that prints all.
        style: Style of the lines.
    """
    alike: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for thing, problem in problems:
        alike[without_details(problem)].append((thing, problem))
    groups = list(alike.values())
    shown = groups if show_all else groups[:MAX_REASONS]
    for group in shown:
        listed = group if show_all else group[:MAX_ALIKE]
        print_lines(console, [f"{thing}: {problem}" for thing, problem in listed], style)
        if len(group) > len(listed):
            n_more = len(group) - len(listed)
            console.print(f"  and {n_more:,} more like these; `{command}` lists all", markup=False)
    if len(groups) > len(shown):
        n_more = sum(len(group) for group in groups[MAX_REASONS:])
        console.print(f"  and {n_more:,} other problems; `{command}` lists all", markup=False)
