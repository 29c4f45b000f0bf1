"""The program ``pinnace``, also as ``python -m pinnace``."""

import sys


def run() -> int:
    """Run the command line; a Ctrl-C that comes while it is still being loaded ends it as quietly as a later one."""
    try:
        from pinnace.cli.main import main

        return main()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
