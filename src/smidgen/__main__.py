"""`python -m smidgen` is the command `smidgen`."""

import sys

from smidgen.cli import main

sys.exit(main())
