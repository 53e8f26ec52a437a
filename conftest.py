"""For all tests: the book is run strictly, so that a claim that does not come out as its chapter says is an error."""

import os

os.environ["PRUNINGLAB_STRICT"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests are many small networks; more threads only wait for each other
