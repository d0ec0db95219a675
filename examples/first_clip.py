"""A prompt becomes a clip: `python examples/first_clip.py`. A draft: in four steps, by a student of nano."""

from broll.clips import clip

made = clip(
    "sailboats on the sea at sunset, camera pans left", "sailboats.mp4", model="nano", quality="draft", seed=7
)
print(made.path, made.record.latents_sha256)
