"""What every process of a group does in test_parallel.py: each case alone and together, and how far the two are apart.

A clip's entry: the relative difference of its latents and of its frames, and the digest of the latents made together,
which must be the same in all processes.
"""

import functools
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from broll.engine import attention, lora, lora_files, parallel_attention, parallel_vae, step_cache
from broll.engine.attention import AttendCall
from broll.engine.config import VAEConfig
from broll.engine.load import Precision, load
from broll.engine.mesh import Layout, Team, shares
from broll.engine.pipeline import Frames, Warned, digest, generate, resolve
from broll.engine.sampler import Step
from broll.engine.shapes import Grid
from broll.engine.vae import VAE
from broll.spec import Artifact, parse
from tests import checkpoints, loras

ASK = {"prompt": "a lake", "negative_prompt": "grey", "seed": 4, "width": 64, "height": 64, "frames": 13}
PICTURE = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
SHA = "0" * 64
NUMBERS = "wan2.1-t2v-1.3b"  # of which TeaCache's are published


def relative(a, b):
    return float((a - b).norm() / b.norm())


def clip(parts, spec):
    """Latents and frames."""
    latents, frames = None, []
    for event in generate(spec, parts, {SHA: PICTURE}):
        assert not isinstance(event, Warned), event.text
        if isinstance(event, Step):
            latents = event.x
        elif isinstance(event, Frames):
            frames.append(event.frames)
    return latents, torch.cat(frames, dim=1)


class World:
    """Tiny models, loaded by one process alone and by all together."""

    def __init__(self, folder):
        self.folder = folder
        self.team = Team(torch.device("cpu"))

    @functools.cache  # noqa: B019  the process ends with it
    def parts(self, task, *, together=False, streamed=False, int8=False, styled=False):
        team, how = self.team if together else None, Precision(int8=int8)
        parts = load(self.folder / task, task, precision=how, team=team, streamed=streamed)
        if styled:
            file = self.folder / f"film-{self.team.rank}-{together}.safetensors"
            loras.save(loras.pairs(parts.transformer), "comfy", file)
            lora.attach(parts.transformer, [(lora_files.read(file), 0.7, None)])
        return replace(parts, config=replace(parts.config, name=NUMBERS)) if task == "t2v" else parts

    def case(self, task, words, *, streamed=False, int8=False, styled=False, **fields):
        alone = self.parts(task, int8=int8, styled=styled)
        together = self.parts(task, together=True, streamed=streamed, int8=int8, styled=styled)
        picture = {"image": Artifact(id="picture", sha256=SHA)} if task in ("i2v", "ti2v") else {}
        spec = resolve(parse(model=task, **ASK | picture | fields), alone.config, picture=PICTURE)
        self.team.words = words
        latents, frames = clip(together, spec)
        plain, pictures = clip(alone, spec)
        return relative(latents, plain), relative(frames, pictures), digest(latents)


def attends(team):
    """Ulysses with heads and tokens that do not divide, and the ring, on given tensors."""
    found, size = {}, team.size
    call = AttendCall("self", 0, Grid(1, 1, 37))
    for heads in (1, 3, 5, 12):
        generator = torch.Generator().manual_seed(heads)
        q, k, v = torch.randn(3, 2, heads, 37, 16, generator=generator).unbind()
        tokens = shares(37, size)
        own = [x.split(tokens, dim=2)[team.rank] for x in (q, k, v)]
        whole = attention.sdpa(q, k, v, call)
        for layout in (Layout(ulysses=size), Layout(ring=size)):
            mesh = team.mesh(layout)
            out = parallel_attention.attend(attention.sdpa, mesh, tokens)(*own, call)
            found[f"{layout} of {heads} heads"] = relative(mesh.tokens.gather(out, 2, tokens), whole)
            low = [x.bfloat16() for x in own]
            out = parallel_attention.attend(attention.sdpa, mesh, tokens)(*low, call)
            whole_low = attention.sdpa(q.bfloat16(), k.bfloat16(), v.bfloat16(), call)
            found[f"{layout} of {heads} heads, bf16"] = relative(
                mesh.tokens.gather(out, 2, tokens), whole_low
            )
    return found


def text(world):
    """Whether the features are the same bits, and what share of the encoder's bytes is here."""
    alone, together = world.parts("t2v"), world.parts("t2v", together=True)
    with torch.inference_mode():
        same = all(torch.equal(alone.text(words), together.text(words)) for words in ("a lake", "a" * 60))
    held = [sum(p.numel() for p in parts.text.model.parameters()) for parts in (together, alone)]
    return same, held[0] / held[1]


def strips(team, heights=(7,)):
    """Frames of an autoencoder, of heights that do and do not divide."""
    found = {}
    for name, config in (
        ("patched", VAEConfig(base_dim=4, num_res_blocks=1, patch_size=2)),
        ("plain", VAEConfig(base_dim=8)),
    ):
        vae = checkpoints.built(lambda config=config: VAE(config)).requires_grad_(False)
        for height in heights:
            z = torch.randn(1, 16, 3, height, 6, generator=torch.Generator().manual_seed(height))
            with torch.inference_mode():
                whole = vae.decode(z)
                chunks = list(parallel_vae.Strips(vae, team.all)(z))
                after = vae.decode(z)
            assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4]
            assert torch.equal(after, whole), "the layers are as they were"
            found[f"{name}, {height} rows"] = float((torch.cat(chunks, dim=2) - whole).abs().max())
    return found


def shared(world, **heights):
    return attends(world.team), text(world), strips(world.team, **heights)


def two(folder: Path):
    world = World(folder)
    found = {f"t2v {words}": world.case("t2v", words) for words in ("cfg=2", "ulysses=2", "ring=2")}
    found["tokens that do not divide"] = world.case("t2v", "ulysses=2", width=96, height=32, frames=9)
    return found, *shared(world)


def more(folder: Path):
    world = World(folder)
    ways = ("cfg=2", "ulysses=2", "ring=2")
    found = {f"{task} {words}": world.case(task, words) for task in ("i2v", "ti2v", "vace") for words in ways}
    found["auto"] = world.case("t2v", "auto")
    found["auto without guidance"] = world.case("t2v", "auto", guidance=1)
    found["blocks streamed"] = world.case("t2v", "ulysses=2", streamed=True)
    found["far pairs left out"] = world.case("t2v", "ulysses=2", sparsity=0.5, steps=5)
    found["a LoRA beside"] = world.case("t2v", "ulysses=2", styled=True)
    found["int8"] = world.case("t2v", "cfg=2", int8=True)
    cached = {"quality": "draft", "step_cache": "teacache", "steps": 9}
    spec = resolve(parse(model="t2v", **ASK | cached), world.parts("t2v").config)
    assert step_cache.computed(spec, world.parts("t2v").config) < 9
    found["steps skipped"] = world.case("t2v", "ulysses=2", **cached)
    found["half of the steps guided"] = world.case("t2v", "auto", guidance_until=0.5, steps=4)
    return found, *shared(world, heights=(1, 4, 9))


def four(folder: Path):
    world = World(folder)
    ways = ("ulysses=4", "ring=4", "ulysses=2,ring=2", "cfg=2,ulysses=2", "cfg=2,ring=2")
    found = {f"{task} {words}": world.case(task, words) for words in ways for task in ("t2v", "ti2v")}
    return found, *shared(world, heights=(1, 4, 7, 9))
