"""`python -m medisyn` is the command line."""

import sys

from medisyn.cli import main

if __name__ == "__main__":
    sys.exit(main())
