"""A prompt becomes a clip: `python examples/first_clip.py`."""

from broll.clips import clip

made = clip("sailboats on the sea at sunset, camera pans left", "sailboats.mp4", model="nano", seed=7)
print(made.path, made.record.latents_sha256)
