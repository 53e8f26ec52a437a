"""How benchmarks write what they measured: a page of sections, of which a run replaces its own."""

import re
from pathlib import Path


def replace_sections(file: Path, title: str, sections: list[str]) -> None:
    """Write sections (`## Name (when and where)`) into a page, in place of those of the same name."""
    text = file.read_text() if file.exists() else ""
    kept = {part.split(" (")[0]: part.strip() for part in re.split(r"^(?=## )", text, flags=re.M)[1:]}
    kept |= {section.split(" (")[0]: section.strip() for section in sections}
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n\n".join([title, *kept.values()]) + "\n")
