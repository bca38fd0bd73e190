"""`python -m lowbit` is `lowbit`, and what launchers of several processes run."""

from lowbit.cli.main import script

if __name__ == "__main__":
    script()
