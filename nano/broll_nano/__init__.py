"""nano's weights, in the folder layout of diffusers."""

from pathlib import Path

FOLDER = Path(__file__).parent / "model"
