"""`python -m hybridlib.miniature.immiscible`; see `command`, which processes can import, unlike this module."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
