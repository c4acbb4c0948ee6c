"""Run with ``python -m se3_uploader``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
