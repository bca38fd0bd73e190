"""`python -m lowbit` is `lowbit`."""

import sys

from lowbit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
