"""Style transfer built on adaptive norms.

from styleapp import StyleTransfer
StyleTransfer().stylize("photo.jpg", "great-wave", alpha=0.8).save("out.png")
"""

from typing import TYPE_CHECKING, Any

from styleapp.errors import StyleError

if TYPE_CHECKING:
    from styleapp.pipeline import StyleTransfer

__all__ = ["StyleError", "StyleTransfer", "__version__"]
__version__ = "0.20.0"


def __getattr__(name: str) -> Any:
    """Import the pipeline, and torch with it, only when it is used: ``styleapp --help`` answers at once."""
    if name == "StyleTransfer":
        from styleapp.pipeline import StyleTransfer

        return StyleTransfer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
