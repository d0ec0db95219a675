"""broll: your own video generation service. Text or an image in, a finished clip out."""

from importlib.metadata import PackageNotFoundError, version

from broll.errors import BrollError
from broll.spec import VideoSpec

try:
    __version__ = version("broll")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0.0.0"

__all__ = ["BrollError", "VideoSpec", "__version__"]
