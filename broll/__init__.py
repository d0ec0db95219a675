"""broll: your own video generation service. Text or an image in, a finished clip out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from broll.errors import BrollError

if TYPE_CHECKING:
    from broll.call import clip
    from broll.spec import VideoSpec

    __version__: str

__all__ = ["AsyncClient", "BrollError", "Client", "VideoSpec", "__version__", "clip"]


def __getattr__(name: str) -> Any:
    """What is heavy (httpx, pydantic, metadata), when first asked for: all who import a part come through here."""
    if name == "__version__":
        return _version()
    if name == "VideoSpec":
        return import_module("broll.spec").VideoSpec
    if name == "clip":
        return import_module("broll.call").clip
    if name in ("AsyncClient", "Client"):
        return getattr(import_module("broll.client"), name)
    raise AttributeError(f"module 'broll' has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("broll")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0.0.0"
