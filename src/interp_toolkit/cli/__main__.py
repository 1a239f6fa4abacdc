"""`python -m interp_toolkit.cli`."""

import sys

from interp_toolkit.cli.main import main

sys.exit(main())
