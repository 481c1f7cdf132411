"""``python -m styleapp``."""

from styleapp.cli import main

main()
