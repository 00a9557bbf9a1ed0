"""`python -m deit_zoo` is the `deit-zoo` command."""

from deit_zoo.cli import main

if __name__ == "__main__":
    main()
