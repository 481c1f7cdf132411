"""The web page: stylize, compare, mix, regions, norms, batches; and the same for programs."""

from styleapp.web.app import build
from styleapp.web.server import launch, make_app
from styleapp.web.service import Service

__all__ = ["Service", "build", "launch", "make_app"]
