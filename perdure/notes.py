"""What a report must say of its rows besides numbers: what guards looked at and did. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .data.suites import SUITES
from .groups import Group
from .guard_spec import splits_of
from .identities import origin_of
from .records import Record


def notes_on(groups: Sequence[Group]) -> tuple[str, ...]:
    """Return sentences on the rows of a report."""
    found = []
    for one in groups:
        looked = sorted({name for record in one.records for name in looked_at(record)})
        if looked:
            found.append(
                f"{one.label}: a guard looked at {', '.join(looked)} during training, so its "
                "scores there are no untouched test scores."
            )
        acts = [(record.seed, told(record.guard)) for record in one.records if record.guard]
        found += [f"{one.label}, seed {seed}: {text}." for seed, text in acts if text]
    return tuple(found)


def looked_at(record: Record) -> list[str]:
    """Return the scored splits whose images a guard of the run, or of what it is made of, saw."""
    scored = SUITES.get(record.suite)
    found: list[str] = []
    for guard in guards_of(record.origin):
        name = str(guard.get("suite"))
        watched = SUITES.get(name)
        if watched is None or scored is None or not watched.splits or not scored.splits:
            # What these are made of depends on a directory.
            found += record.splits if name == record.suite else ()
            continue
        names = splits_of(str(guard.get("metric")), watched)
        seen = {(one.dataset, one.split) for one in watched.splits if one.name in names}
        found += [one.name for one in scored.splits if (one.dataset, one.split) in seen]
    return [name for name in found if name in record.splits]


def guards_of(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the guards in a recipe, or in those of the inputs of a merge."""
    own = document.get("guard")
    found = [own] if isinstance(own, Mapping) else []
    for entry in document.get("inputs") or () if "kind" in document else ():
        found += guards_of(origin_of(entry))
    return found


def told(guard: Mapping[str, Any]) -> str:
    """Return what a guard did, in words; "" where it only looked."""
    parts = [
        f"went back from step {one['step']} to {one['to']}, on at {one['rate']:g} of the rates"
        for one in guard.get("rollbacks") or ()
    ]
    stopped = guard.get("stopped")
    if stopped:
        parts.append(f"stopped it at step {stopped['step']} with the weights of {stopped['to']}")
    return f"the guard of {guard['metric']} " + "; ".join(parts) if parts else ""
