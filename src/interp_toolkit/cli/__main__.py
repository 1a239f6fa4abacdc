"""`python -m interp_toolkit.cli`."""

import sys

from interp_toolkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
