"""The atlas: published pruning systems, what each answers to the five questions, and whether it works here.

    SYSTEMS["wanda"]            # one system
    table()                     # all of them

What is planned has no recipe yet; `recipe` says so.
"""

from typing import TYPE_CHECKING

from pruninglab.atlas import beyond, language, structures, training, weights
from pruninglab.atlas.system import TOPICS, System

if TYPE_CHECKING:
    import pandas as pd

_PARTS = (weights, structures, training, language, beyond)
SYSTEMS: dict[str, System] = {system.name: system for part in _PARTS for system in part.SYSTEMS}
ENOUGH = 8  # how many recipes an error names


def table() -> "pd.DataFrame":
    """A row for each system, in the order of topics.

    Columns: `name`, `title`, `topic`, `chapter` and `state`, the five answers (`what`, `how_important`, `how_much`,
    `when`, `repair`), `claim`, `reference`, `task`, `start`, `how` and `note`; see `System`.
    """
    import pandas as pd

    answers = ("what", "how_important", "how_much", "when", "repair")
    columns = (
        "name",
        "title",
        "topic",
        "chapter",
        "state",
        *answers,
        "claim",
        "reference",
        "task",
        "start",
        "how",
        "note",
    )
    ordered = sorted(SYSTEMS.values(), key=lambda system: list(TOPICS).index(system.topic))
    rows = pd.DataFrame([{column: getattr(system, column) for column in columns} for system in ordered])
    return rows.astype({"chapter": "Int64"})


def planned(name: str) -> ValueError:
    """The error for a system that has no recipe yet: what it is, whose topic, and recipes that work.

    Args:
        name: of a system in `SYSTEMS`.
    """
    system = SYSTEMS[name]
    chapter = TOPICS[system.topic]
    where = "has no chapter yet" if chapter is None else f"is that of chapter {chapter}"
    alike = [other.name for other in SYSTEMS.values() if other.works and other.topic == system.topic]
    found = alike or [other.name for other in SYSTEMS.values() if other.works]
    named = ", ".join(found[:ENOUGH]) + (", …" if len(found) > ENOUGH else "")
    return ValueError(
        f"{name!r} ({system.title}) is planned: there is no recipe of it yet. Its topic, {system.topic}, {where}. "
        f"These work{' there' if alike else ''}: {named}."
    )


__all__ = ["SYSTEMS", "TOPICS", "System", "planned", "table"]
