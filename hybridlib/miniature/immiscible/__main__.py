"""`python -m hybridlib.miniature.immiscible`; see `command`, which processes can import, as they could not import this."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
