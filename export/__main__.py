"""``python -m pinnace.export MODEL --task TASK``: the same as ``pinnace export MODEL --task TASK``."""

import sys

from pinnace.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
