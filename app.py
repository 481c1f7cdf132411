"""The web page: ``python app.py``. Options: ``styleapp web --help``."""

import sys

from styleapp.cli import main

if __name__ == "__main__":
    main(["web", *sys.argv[1:]])
