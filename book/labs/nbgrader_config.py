"""What nbgrader needs to know of this course; the teacher's page says how. Copy the folder, and call nbgrader there."""

c = get_config()  # noqa: F821  nbgrader defines it
c.CourseDirectory.course_id = "pruning"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError  # replace this line by yours"}
c.ClearSolutions.text_stub = "Replace this line by your answer."
c.Execute.timeout = 60  # seconds for one cell
c.OverwriteCells.add_missing_cells = True  # a test that a student deleted comes back
