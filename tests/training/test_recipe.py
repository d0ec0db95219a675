"""The whole recipe, made tiny: every command runs, resumes, and ends in a folder that the engine loads."""

import random
import shutil

import pytest
import torch

from broll.engine import pipeline
from broll.engine.load import load
from broll.engine.pipeline import Frames
from broll.spec import parse
from training import export, latents, measures, render, run, text, transformer, vae
from training.muon import orthogonal
from training.scenes import sample


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    tiny = run.recipe()
    tiny["work"] = str(tmp_path_factory.mktemp("run"))
    tiny["clip"] |= {"width": 64, "height": 32, "frames": 9}
    tiny["render"]["count"] = 3
    tiny["vae"] |= {"base_dim": 4, "decoder_base_dim": 4, "minutes": 0.02, "crops": [[1, 9, 32], [2, 5, 32]]}
    tiny["text"] |= {"vocab_size": 300, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    tiny["text"] |= {"steps": 3, "batch": 4}
    tiny["transformer"] |= {"dim": 24, "ffn_dim": 32, "num_heads": 2, "num_layers": 1, "minutes": 0.02}
    tiny["transformer"] |= {"tokens": 8, "latent_frames": [2, 3], "weights": [0.5, 0.5]}
    tiny["defaults"] |= {"steps": 2}
    render.render_all(tiny)
    vae.train(tiny)
    text.train(tiny)
    latents.encode_all(tiny)
    transformer.train(tiny)
    return tiny


def test_what_was_trained_is_exported_loaded_and_makes_a_clip(numbers, tmp_path):
    export.export(numbers, tmp_path / "model")
    parts = load(tmp_path / "model", "tiny-nano")
    spec = pipeline.resolve(parse(model="tiny-nano", prompt="a lake at night", seed=1), parts.config)
    assert (spec.width, spec.height, spec.frames, spec.steps) == (64, 32, 9, 2)
    frames = torch.cat([e.frames for e in pipeline.generate(spec, parts) if isinstance(e, Frames)], dim=1)
    assert frames.shape == (3, 9, 32, 64)
    assert frames.isfinite().all()


def test_training_goes_on_from_exported_weights(numbers, tmp_path):
    export.export(numbers, tmp_path / "model")
    elsewhere = numbers | {"work": str(tmp_path / "run")}
    export.restore(elsewhere, tmp_path / "model")
    shutil.copytree(run.work_folder(numbers) / "latents", run.work_folder(elsewhere) / "latents")
    transformer.train(elsewhere)
    assert run.load(run.work_folder(elsewhere) / "transformer.pt")["step"] > 0
    with pytest.raises(SystemExit, match="already has"):
        export.restore(elsewhere, tmp_path / "model")


def test_training_goes_on_from_its_checkpoint(numbers):
    folder = run.work_folder(numbers)
    before = run.load(folder / "transformer.pt")
    longer = numbers | {"transformer": numbers["transformer"] | {"minutes": before["spent"] + 0.01}}
    transformer.train(longer)
    after = run.load(folder / "transformer.pt")
    assert after["step"] > before["step"]
    assert after["spent"] > before["spent"]
    assert after["clips"] > before["clips"]


def test_rendering_again_renders_nothing_anew(numbers):
    path = render.clip_path(run.work_folder(numbers), 1)
    time = path.stat().st_mtime_ns
    render.render_all(numbers)
    assert path.stat().st_mtime_ns == time


def test_the_first_latents_of_a_clip_serve_every_length(numbers):
    """What the transformer's training relies on when it cuts clips short."""
    folder, model = run.work_folder(numbers), vae.load(numbers)
    clip = render.to_float(render.load_clip(folder, 0)).transpose(0, 1)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.encode(clip)[:, :, :2], model.encode(clip[:, :, :5]))


def test_muon_makes_singular_values_near_one():
    for shape in ((2, 20, 50), (1, 64, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_flow_features_tell_left_from_right():
    """Shift a texture by 2 pixels a frame: the measured flow is that."""
    texture = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 60), scale_factor=8, mode="bicubic")[0]
    clip = torch.stack([texture[:, :, 2 * i : 2 * i + 160] for i in range(81)]).clamp(0, 1)
    flow = measures.camera_features((clip * 255).byte())
    assert flow[0].median() == pytest.approx(-2, abs=0.2)
    assert flow[1].median() == pytest.approx(0, abs=0.2)


def test_light_features_do_not_depend_on_length():
    clip = render.to_uint8(render.render(sample(random.Random(1)), frames=9, height=32, width=64))
    assert measures.light_features(clip).shape == (41,)


def test_without_emphasis_the_loss_by_tempo_is_the_mean_squared_error():
    basis, weight = transformer.tempi(9, 1.0)
    error = torch.randn(2, 3, 9, 4, 5)
    by_tempo = torch.einsum("kf,bcfhw->bchwk", basis, error)
    torch.testing.assert_close((weight * by_tempo.square()).mean(), error.square().mean())


def test_emphasis_is_on_slow_change_and_leaves_stillness_and_flicker_alone():
    _, weight = transformer.tempi(21, 4.0)
    assert weight.mean() == pytest.approx(1.0)
    assert weight[1] == weight[6] == pytest.approx(4 * float(weight[0]))
    assert weight[7] == weight[20] == weight[0]
