"""`python -m specx.cli` is `specx`."""

from specx.cli.app import main

if __name__ == "__main__":
    main()
