"""broll: your own video generation service. Text or an image in, a finished clip out."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from broll.errors import BrollError

if TYPE_CHECKING:
    from broll.spec import VideoSpec

try:
    __version__ = version("broll")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0.0.0"

__all__ = ["AsyncClient", "BrollError", "Client", "VideoSpec", "__version__"]


def __getattr__(name: str) -> Any:
    """What is heavy (httpx, pydantic), when it is first asked for: all who import a part of broll come through here."""
    if name == "VideoSpec":
        return import_module("broll.spec").VideoSpec
    if name in ("AsyncClient", "Client"):
        return getattr(import_module("broll.client"), name)
    raise AttributeError(f"module 'broll' has no attribute {name!r}")
