"""`python -m pruninglab`."""

import sys

from pruninglab.cli import main

sys.exit(main())
