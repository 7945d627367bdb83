"""How often each fault had which outcome."""

from collections import Counter
from typing import Any

EXACT, REFUSED, SILENT = "recovered exactly", "refused", "silent"
TAKEN, TRACEBACK = "taken", "traceback"  # of input that is anything: what may be taken is
FAULTS, INPUT = (EXACT, REFUSED, SILENT), (TAKEN, REFUSED, TRACEBACK)
BAD = {SILENT, TRACEBACK}

Table = dict[str, Counter[str]]


def count(table: Table, kind: str, outcome: str, what: Any) -> None:
    """One more; what is bad is said at once, because a table alone does not tell where to look."""
    table.setdefault(kind, Counter())[outcome] += 1
    if outcome in BAD:
        print(f"{outcome.upper()}: {kind}: {what}", flush=True)


def add(table: Table, other: Table) -> None:
    """Its counts, too."""
    for kind, seen in other.items():
        table.setdefault(kind, Counter()).update(seen)


def lines(table: Table, outcomes: tuple[str, ...] = FAULTS) -> list[str]:
    """To print, with their sum."""
    total: Counter[str] = sum(table.values(), Counter())
    width = max(map(len, table))
    rows = [f"{'':<{width}}{'tried':>8}" + "".join(f"{outcome:>19}" for outcome in outcomes)]
    for kind, seen in [*table.items(), ("all", total)]:
        rows.append(f"{kind:<{width}}{seen.total():>8,}" + "".join(f"{seen[outcome]:>19,}" for outcome in outcomes))
    return rows


def is_bad(table: Table) -> bool:
    """Whether anything was silent, or ended with a traceback."""
    return any(seen[outcome] for seen in table.values() for outcome in BAD)
