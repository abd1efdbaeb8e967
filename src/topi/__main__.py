"""`python -m topi` is the `topi` command."""

import sys

from topi.cli import main

sys.exit(main())
