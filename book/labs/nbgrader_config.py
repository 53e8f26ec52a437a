"""What nbgrader needs to know of this course; the teacher's page says how. Copy the folder, and call nbgrader there."""

import nbformat
from nbgrader.preprocessors import (
    CheckCellMetadata,
    ClearOutput,
    DeduplicateIds,
    OverwriteCells,
    OverwriteKernelspec,
)


class Deduplicate(DeduplicateIds):
    """nbgrader's own, which leaves a mark on doubled cells that its next step stumbles over (in 0.9.6)."""

    def preprocess(self, nb, resources):
        """Take the mark away."""
        nb, resources = super().preprocess(nb, resources)
        for cell in nb.cells:
            if cell.metadata.get("nbgrader") == {}:
                del cell.metadata["nbgrader"]
        return nb, resources


class Overwrite(OverwriteCells):
    """nbgrader's own, which brings back tests that a student deleted, but (in 0.9.6) no cell that a test follows."""

    def add_missing_grade_cells(self, nb, resources):
        """Bring back given cells and the places for answers first."""
        known = self.gradebook.find_notebook(self.notebook_id, self.assignment_id)
        graded, place = {cell.name for cell in known.grade_cells}, 0
        for source in known.source_cells:
            names = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in nb.cells]
            if source.name in names:
                place = max(i for i, name in enumerate(names) if name == source.name) + 1
            elif source.name not in graded:
                cell = nbformat.from_dict(self.missing_cell_transform(source, 0, is_solution=not source.locked))
                cell.metadata.nbgrader.update(grade=False, locked=source.locked)
                cell.metadata.nbgrader.pop("points", None)
                nb.cells.insert(place, cell)
                place += 1
        return super().add_missing_grade_cells(nb, resources)


c = get_config()  # noqa: F821  nbgrader defines it
c.CourseDirectory.course_id = "pruning"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError  # replace this line by yours"}
c.ClearSolutions.text_stub = "Replace this line by your answer."
c.Execute.timeout = 60  # seconds for one cell
c.Overwrite.add_missing_cells = True  # what a student deleted comes back
c.Autograde.sanitize_preprocessors = [ClearOutput, Deduplicate, OverwriteKernelspec, Overwrite, CheckCellMetadata]
