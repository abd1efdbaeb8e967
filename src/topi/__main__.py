"""`python -m topi` is the `topi` command."""

import sys

from topi.bench.cli.main import main

sys.exit(main())
