"""`python -m broll` is `broll`."""

from broll.cli.app import main

if __name__ == "__main__":
    main()
