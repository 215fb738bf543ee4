"""`python -m rfs_utils` is the command `rfs`."""

import sys

from .cli import main

sys.exit(main())
