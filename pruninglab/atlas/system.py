"""What the atlas says of one published system."""

from dataclasses import dataclass

from pruninglab.recipes import RECIPES
from pruninglab.recipes.answers import ANSWERS

# Topic → the chapter that it is the topic of, if there is one.
TOPICS: dict[str, int | None] = {
    "single weights": 2,
    "channels": 3,
    "lottery tickets": 4,
    "sparse from the start": 5,
    "rate and distortion": 6,
    "curvature": 7,
    "language models, in one shot": 8,
    "language models, cut and healed": 9,
    "experts": None,
    "attention and caches": None,
    "tokens": None,
    "training data": None,
    "elsewhere": None,
}


@dataclass(frozen=True, kw_only=True)
class System:
    """A published system: one answer to each of the five questions, what it claims, and where it is found.

    Words in `backticks` are names that the library knows: criteria, units, allocations, schedules, recoveries.

    Attributes:
        name: what `recipe` knows it by, or will.
        title: what people call it.
        topic: one of `TOPICS`.
        what: what it removes.
        how_important: by which criterion.
        how_much: how it decides how much goes from where.
        when: in which schedule.
        repair: what happens to what is left.
        claim: what its authors say, in one sentence.
        reference: authors, title, venue or arXiv number, year.
        chapter: the chapter that teaches it, if one does.
        task: a task that its recipe can be tried on, once there is one; None where no task fits.
        start: the network that its recipe is handed: "trained" or "untrained".
        note: where the library's version is not the paper's.
    """

    name: str
    title: str
    topic: str
    what: str
    how_important: str
    how_much: str
    when: str
    repair: str
    claim: str
    reference: str
    chapter: int | None = None
    task: str | None = None
    start: str = "trained"
    note: str = ""

    @property
    def works(self) -> bool:
        """Whether there is a recipe of it."""
        return self.name in RECIPES

    @property
    def state(self) -> str:
        """`works` in a word: "works" or "planned"."""
        return "works" if self.works else "planned"

    @property
    def how(self) -> str:
        """How the library does it, in a line."""
        if self.name in ANSWERS:
            rooms = ("unit", "criterion", "allocation", "schedule", "recovery")
            told = ANSWERS[self.name].told().values()
            return ", ".join(f"{room} {answer}" for room, answer in zip(rooms, told, strict=True))
        if self.works:
            made = RECIPES[self.name]
            return f"`{made.__module__}.{made.__name__}`"
        return "not yet"


def combination(
    name: str,
    title: str,
    *,
    topic: str,
    claim: str,
    reference: str,
    task: str,
    chapter: int | None = None,
    note: str = "",
) -> System:
    """A system that is no more than one answer to each question: its answers are those in `recipes.answers`."""
    own = ANSWERS[name]
    return System(
        name=name,
        title=title,
        topic=topic,
        **own.told(),
        claim=claim,
        reference=reference,
        chapter=chapter,
        task=task,
        start="trained" if own.start == "trained" else "untrained",
        note=note,
    )
