"""The warm model of a device: when it is given up, and what a new one is loaded without."""

import gc
import json
import weakref
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from broll import catalog, loras, serving, wiring
from broll.engine import pipeline
from broll.events import Clip, Failed, Preview, Progress, Work
from broll.renderer import Flag, Renderer
from broll.settings import Settings
from broll.spec import parse
from tests import checkpoints
from tests import loras as files


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models, one whose weights are cut short, and a LoRA."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("tiny", "other", "cut"):
        checkpoints.diffusers_folder(folder / name)
    file = folder / "cut" / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    found = catalog.find(Settings(models=folder), "tiny")
    parts = wiring.load(found, wiring.describe(found))
    (folder / "loras").mkdir()
    files.save(files.pairs(parts.transformer), "comfy", folder / "loras" / "film.safetensors")
    return folder


@pytest.fixture
def settings(models, tmp_path):
    return Settings(models=models, data=tmp_path / "data", threads=1)


def run(renderer, model, **fields):
    """The last event of a job: its clip, or why there is none."""
    given = {"model": model, "prompt": "a lake", "seed": 1} | fields
    spec = parse(**given)
    if model in ("tiny", "other"):
        config = wiring.describe(catalog.find(renderer.settings, model))
        spec = pipeline.resolve(spec, config)
    *_, last = renderer.run(Work("job", model, spec.model_dump_json(exclude_none=True)), Flag())
    return last


def latents(clip):
    assert isinstance(clip, Clip), clip
    return json.loads(clip.record)["latents_sha256"]


def alive(renderer):
    """Weak references to all that a loaded model holds."""
    parts = renderer._warm.parts
    modules = (parts.transformer, parts.vae, parts.text.model)
    tensors = [tensor for module in modules for tensor in module.parameters()]
    return [weakref.ref(one) for one in (*modules, *tensors)]


def test_the_old_model_is_gone_before_the_weights_of_the_new_one_are_read(settings):
    """Those of the new one cannot be read: what is gone by then went before. The collector does not run by itself."""
    renderer = Renderer(settings)
    latents(run(renderer, "tiny"))
    before = alive(renderer)
    gc.disable()
    try:
        failed = run(renderer, "cut")
    finally:
        gc.enable()
    assert isinstance(failed, Failed)
    assert failed.code == "bad_checkpoint"
    assert len(before) > 50
    assert [ref for ref in before if ref() is not None] == []


def test_a_model_that_is_not_there_costs_the_warm_one_nothing(settings):
    renderer = Renderer(settings)
    first = latents(run(renderer, "tiny"))
    warm = renderer._warm
    failed = run(renderer, "nothing")
    assert isinstance(failed, Failed)
    assert failed.code == "unknown_model"
    assert renderer._warm is warm
    assert latents(run(renderer, "tiny")) == first
    assert renderer._warm is warm


def test_a_switch_and_back_gives_the_same_clip(settings):
    renderer = Renderer(settings)
    first = latents(run(renderer, "tiny"))
    latents(run(renderer, "other"))
    assert latents(run(renderer, "tiny")) == first


def state(renderer):
    return {name: tensor.clone() for name, tensor in renderer._warm.parts.transformer.state_dict().items()}


def test_merged_loras_stay_warm_and_without_them_the_weights_are_those_of_the_file(settings):
    renderer = Renderer(settings.model_copy(update={"merge_loras": True}))
    plain, before = latents(run(renderer, "tiny")), None
    before = state(renderer)
    uses, _ = loras.wanted(settings, [loras.Asked("film", 2.0)])
    styled = run(renderer, "tiny", loras=uses)
    assert latents(styled) != plain
    assert "lora film 2 merged" in json.loads(styled.record)["weights"]
    warm = renderer._warm
    assert latents(run(renderer, "tiny", loras=uses, seed=2)) != latents(styled)
    assert renderer._warm is warm
    changed = state(renderer)
    assert any(not torch.equal(changed[name], tensor) for name, tensor in before.items())
    assert latents(run(renderer, "tiny")) == plain
    after = state(renderer)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_lora_for_some_steps_runs_beside_whatever_the_setting_says(settings):
    uses, _ = loras.wanted(settings, [loras.Asked("film", 1.0, (1, 2))])
    beside, merging = Renderer(settings), Renderer(settings.model_copy(update={"merge_loras": True}))
    wanted = latents(run(beside, "tiny", loras=uses))
    assert latents(run(merging, "tiny", loras=uses)) == wanted
    assert merging._warm.merged == ()


@pytest.fixture
def deep(tmp_path, monkeypatch):
    """A model of eight blocks; the tiny one's two are on the device anyway."""
    small = checkpoints.transformer_numbers()
    monkeypatch.setattr(checkpoints, "transformer_numbers", lambda task: replace(small, num_layers=8))
    checkpoints.diffusers_folder(tmp_path / "models" / "tiny")
    return Settings(models=tmp_path / "models", data=tmp_path / "data", threads=1)


def test_blocks_are_streamed_where_the_device_is_too_small_or_it_is_asked_for(deep):
    made = {}
    for change in ({}, {"memory_mb": 1}, {"memory_mb": 1, "offload": "off"}, {"offload": "on"}):
        renderer = Renderer(deep.model_copy(update=change))
        made[str(change)] = latents(run(renderer, "tiny"))
        streamed = bool(change) and change.get("offload") != "off"
        assert renderer._warm.parts.levers == ("block_streaming",) * streamed
    assert len(set(made.values())) == 1


def told(renderer, model, **fields):
    """All events of a job."""
    config = wiring.describe(catalog.find(renderer.settings, model))
    spec = pipeline.resolve(parse(model=model, prompt="a lake", seed=1, **fields), config)
    return list(renderer.run(Work("job", model, spec.model_dump_json(exclude_none=True)), Flag()))


@pytest.fixture
def wide(tmp_path):
    """A model that makes clips as large as 512x256, which its decoder needs far more memory for than all else."""
    folder = checkpoints.diffusers_folder(tmp_path / "models" / "tiny")
    checkpoints.write_json(
        folder / "broll.json", {"defaults": checkpoints.DEFAULTS | {"max_area": 512 * 256}}
    )
    return Settings(models=tmp_path / "models", data=tmp_path / "data", threads=1)


@pytest.mark.slow
def test_a_warm_model_decodes_in_tiles_where_a_clip_needs_it_and_only_then(wide):
    from broll import plan

    found = catalog.find(wide, "tiny")
    config, large = wiring.describe(found), {"width": 512, "height": 256}
    spec = pipeline.resolve(parse(model="tiny", prompt="a lake", **large), config)
    need = plan.estimate(
        spec, config, wiring.precision(config, torch.device("cpu")), None, "cpu"
    ).memory_bytes
    renderer = Renderer(wide.model_copy(update={"memory_mb": need // 10**6 - 1}))
    events = told(renderer, "tiny", **large)
    tiled = next(json.loads(event.record) for event in events if isinstance(event, Clip))
    assert tiled["levers"] == ["vae_tiling"]
    steps = [event for event in events if isinstance(event, Progress) and event.stage == "decode"]
    assert [event.percent for event in steps] == sorted(event.percent for event in steps)
    assert steps[0].done < 9 == steps[-1].done
    small = next(json.loads(event.record) for event in told(renderer, "tiny") if isinstance(event, Clip))
    assert small["levers"] == []
    whole = latents(told(Renderer(wide), "tiny", **large)[-1])
    assert whole == tiled["latents_sha256"]


def test_previews_are_sharper_with_a_tiny_decoder_and_the_clip_is_the_same(tmp_path):
    from tests.engine.test_tiny_decoder import weights

    seen = {}
    for name in ("plain", "with"):
        folder = checkpoints.diffusers_folder(tmp_path / name / "tiny")
        if name == "with":
            save_file(weights(), folder / "taew2_1.safetensors")
        renderer = Renderer(Settings(models=tmp_path / name, data=tmp_path / "data", threads=1))
        events = told(renderer, "tiny")
        pictures = [event.webp for event in events if isinstance(event, Preview)]
        seen[name] = pictures[0], latents(events[-1])
    assert seen["plain"][1] == seen["with"][1]
    assert seen["plain"][0] != seen["with"][0]


@pytest.mark.slow
def test_a_larger_clip_makes_a_warm_model_stream_and_it_stays_so(deep):
    from broll import plan

    renderer = Renderer(deep)
    first = latents(run(renderer, "tiny"))
    assert renderer._warm.parts.levers == ()
    renderer._warm = replace(renderer._warm, memory=1)  # as if the clips before had been smaller
    renderer.settings = deep.model_copy(update={"memory_mb": 1})
    assert latents(run(renderer, "tiny")) == first
    warm = renderer._warm
    assert warm.parts.levers == (plan.STREAMING,)
    assert latents(run(renderer, "tiny")) == first
    assert renderer._warm is warm


def test_a_devices_child_works_in_the_folders_of_its_service(tiny_models, tmp_path):
    settings = Settings(models=tiny_models, data=tmp_path / "data", threads=1)
    child, _ = serving.children(settings)[0]
    assert (child._env["BROLL_DATA"], child._env["BROLL_MODELS"]) == (
        str(settings.data),
        str(settings.models),
    )
