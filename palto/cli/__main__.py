"""`python -m palto.cli` is the command `palto`."""

import sys

from palto.cli import main

sys.exit(main())
