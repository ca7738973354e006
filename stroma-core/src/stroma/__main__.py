"""``python -m stroma`` is the command ``stroma``."""

from stroma.cli import main

if __name__ == "__main__":
    main()
