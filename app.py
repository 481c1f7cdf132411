"""The web page: ``python app.py``. Options: ``styleapp web --help``."""

import sys

from styleapp.cli import app

if __name__ == "__main__":
    app(["web", *sys.argv[1:]])
