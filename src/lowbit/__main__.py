"""`python -m lowbit` is `lowbit`, and what launchers of several processes run."""

from lowbit.cli.main import main
from lowbit.processes import end

if __name__ == "__main__":
    end(main())
