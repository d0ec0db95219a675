"""The engine as a generator: watch every step, look at the clip before it is finished, then take the frames.

`python examples/steps.py` writes what the model sees after each step to preview.png, one row a step.
"""

import torch
from PIL import Image

from broll import catalog, wiring
from broll.engine import pipeline
from broll.engine.preview import preview
from broll.engine.sampler import Step
from broll.settings import Settings
from broll.spec import parse

model = catalog.find(Settings(), "nano")
config = wiring.describe(model)
parts = wiring.load(model, config)
asked = parse(model="nano", prompt="a lighthouse at night, camera orbits", frames=17, steps=6, seed=3)

rows, count = [], 0
for event in pipeline.generate(pipeline.resolve(asked, config), parts):
    if isinstance(event, Step):
        print(f"step {event.index + 1}: noise level {event.sigma:.2f}")
        rows.append(torch.cat(list(preview(event.x0, config.preview)), dim=1))
    else:
        count += event.frames.shape[1]
        print(f"{count} frames decoded")

picture = Image.fromarray(torch.cat(rows).numpy())
picture.resize((picture.width * 4, picture.height * 4), Image.Resampling.NEAREST).save("preview.png")
