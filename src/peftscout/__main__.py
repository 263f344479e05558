"""``python -m peftscout`` is the command line."""

from peftscout.cli import main

if __name__ == "__main__":
    main()
