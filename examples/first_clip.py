"""A prompt becomes a clip: `python examples/first_clip.py`. A draft of two seconds, in four steps by nano's student."""

import broll

asked = {"model": "nano", "quality": "draft", "frames": 33, "seed": 7}
made = broll.clip("sailboats on the sea at sunset, camera pans left", "sailboats.mp4", **asked)
print(made.path, made.record.latents_sha256)
