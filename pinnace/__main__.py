"""``python -m pinnace``: the command line."""

import sys

from pinnace.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
