"""What nbgrader needs to know of this course; the teacher's page says how. Copy the folder, and call nbgrader there."""

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


c = get_config()  # noqa: F821  nbgrader defines it
c.CourseDirectory.course_id = "pruning"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError  # replace this line by yours"}
c.ClearSolutions.text_stub = "Replace this line by your answer."
c.Execute.timeout = 60  # seconds for one cell
c.OverwriteCells.add_missing_cells = True  # a test that a student deleted comes back
c.Autograde.sanitize_preprocessors = [ClearOutput, Deduplicate, OverwriteKernelspec, OverwriteCells, CheckCellMetadata]
