"""`python -m threefold`, for launchers that start a module."""

import sys

from threefold.cli import main

if __name__ == "__main__":
    sys.exit(main())
