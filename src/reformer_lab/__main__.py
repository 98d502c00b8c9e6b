"""`python -m reformer_lab` is `reformer-lab`."""

import sys

from reformer_lab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
