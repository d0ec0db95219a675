"""A whole tiny model from one folder: diffusers' own pipelines against ours, from the same noise to pixels."""

import json

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from PIL import Image
from transformers import CLIPVisionModel, PreTrainedTokenizerFast, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from broll.engine import pipeline
from broll.engine.load import load
from broll.engine.pipeline import Frames
from broll.spec import Artifact, parse
from tests import checkpoints
from tests.parity.judge import LIMIT, relative

PROMPT = "slow camera pan across a mountain lake at sunset"
SIDE = 28  # of the tiny CLIP


def judge(folder, images):
    """diffusers' pipeline, every component loaded by diffusers and transformers themselves."""
    hinted = "vace_layers" in json.loads((folder / "transformer" / "config.json").read_text())
    starts = json.loads((folder / "broll.json").read_text()).get("task") == "ti2v"
    kind = WanVACETransformer3DModel if hinted else WanTransformer3DModel
    parts = {
        "tokenizer": PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        "text_encoder": UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
        "transformer": kind.from_pretrained(folder / "transformer"),
        "vae": AutoencoderKLWan.from_pretrained(folder / "vae"),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }
    if starts:
        return (WanImageToVideoPipeline if images else WanPipeline)(**parts, expand_timesteps=True)
    if not (folder / "image_encoder").exists():
        return WanVACEPipeline(**parts) if hinted else WanPipeline(**parts)
    crop = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=crop)
    vision = CLIPVisionModel.from_pretrained(folder / "image_encoder")
    return WanImageToVideoPipeline(**parts, image_encoder=vision, image_processor=processor)


def picture(seed):
    generator = torch.Generator().manual_seed(seed)
    small = (torch.rand(4, 8, 3, generator=generator) * 255).byte().numpy()
    return Image.fromarray(small).resize((64, 32), Image.Resampling.BICUBIC)


@pytest.fixture(autouse=True)
def tiny_area(tiny_models):
    """The folders are read as they are published: this only says what the test relies on."""
    for name in ("tiny", "tiny-i2v", "tiny-flf2v"):
        assert json.loads((tiny_models / name / "broll.json").read_text())["defaults"]["size"] == [64, 32]


@pytest.fixture
def folder(request, tiny_models, tmp_path):
    task = {"tiny-vace": "vace", "tiny-ti2v": "ti2v", "tiny-ti2v-text": "ti2v"}.get(request.param)
    if task is not None:
        return checkpoints.diffusers_folder(tmp_path / request.param, task)
    return tiny_models / request.param


@pytest.mark.parametrize(
    "folder", ["tiny", "tiny-i2v", "tiny-flf2v", "tiny-vace", "tiny-ti2v", "tiny-ti2v-text"], indirect=True
)
def test_the_clip_equals_the_one_of_diffusers_pipeline(folder):
    name = folder.name
    parts = load(folder, name)
    pictures = {
        "tiny": [],
        "tiny-vace": [],
        "tiny-ti2v": [picture(1)],
        "tiny-ti2v-text": [],
        "tiny-i2v": [picture(1)],
        "tiny-flf2v": [picture(1), picture(2)],
    }[name]
    artifacts = [Artifact.of(p.tobytes()) for p in pictures]
    asked = parse(
        model=name, prompt=PROMPT, negative_prompt="static, grey", frames=9, width=64, height=32, steps=6,
        guidance=4.0, shift=3.0, seed=5, grid="diffusers", preprocessing="diffusers",
        **dict(zip(("image", "last_image"), artifacts, strict=False)),
    )  # fmt: skip
    spec = pipeline.resolve(asked, parts.config)
    given = {a.sha256: p for a, p in zip(artifacts, pictures, strict=True)}
    out = list(pipeline.generate(spec, parts, given))
    ours = torch.cat([o.frames for o in out if isinstance(o, Frames)], dim=1)

    images = dict(zip(("image", "last_image"), pictures, strict=False))
    stride = parts.config.vae.spatial_stride
    grid = pipeline.Grid(3, 32 // stride, 64 // stride)
    theirs = judge(folder, images)(
        prompt=PROMPT, negative_prompt="static, grey", num_frames=9, width=64, height=32,
        num_inference_steps=6, guidance_scale=4.0, latents=pipeline.noise(grid, 16, 5), output_type="pt",
        **images,
    ).frames[0]  # fmt: skip
    assert relative((ours + 1) / 2, theirs.transpose(0, 1)) < LIMIT
