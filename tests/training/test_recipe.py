"""The whole recipe, made tiny: every stage runs, resumes, and ends in a folder that the engine loads."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from broll.engine import attention, lora, lora_facts, lora_files, pipeline
from broll.engine.load import load
from broll.engine.pipeline import Frames
from broll.engine.sampler import Step
from broll.engine.shapes import Grid
from broll.spec import parse
from training import all as recipe
from training import (
    draws,
    evaluate,
    export,
    features,
    latents,
    measures,
    render,
    run,
    sampling,
    student,
    transformer,
    vae,
)
from training.report import KEYS

PROMPT = "a lake at night, the camera pans left"


def tiny(work: Path) -> dict[str, Any]:
    """The recipe's own tables with small numbers."""
    numbers = run.recipe()
    numbers["work"] = str(work)
    numbers["clip"] |= {"width": 64, "height": 32, "frames": 17}
    numbers["render"] |= {"count": 28, "kept": 24, "share": dict.fromkeys(numbers["render"]["share"], 1.0)}
    numbers["minutes"]["cpu"] = {
        "fill": 10,
        "vae": 0.04,
        "decoder": 0.01,
        "transformer": 0.03,
        "student": 0.03,
    }
    numbers["vae"] |= {"base_dim": 8, "decoder_base_dim": 8, "crops": [[1, 9, 32, 32], [1, 17, 32, 64]]}
    numbers["vae"]["pixels"]["cpu"] = 30_000
    numbers["decoder"] |= {"crops": [[1, 9, 32, 32]], "pixels": {"cpu": 30_000}}
    numbers["text"] |= {"vocab_size": 900, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1}
    numbers["text"] |= {"num_heads": 2, "captions": 300, "steps": 5, "batch": 4}
    numbers["transformer"] |= {"dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 2}
    numbers["transformer"] |= {"latent_frames": [3, 5], "weights": [0.5, 0.5], "tokens": {"cpu": 40}}
    numbers["student"] |= {"rank": 4, "inner": 2, "reuse": 2}
    numbers["measures"] = {"anew": True, "plain": 20, "through": 3, "held_out": 4, "steps": 4}
    numbers["defaults"] |= {"steps": 3}
    return numbers


def toml(table: dict[str, Any], name: str = "") -> str:
    """Numbers, words and lists are the same in JSON."""
    own = [
        f"{json.dumps(key)} = {json.dumps(value)}"
        for key, value in table.items()
        if not isinstance(value, dict)
    ]
    inner = [
        toml(value, f"{name}.{key}".strip(".")) for key, value in table.items() if isinstance(value, dict)
    ]
    return "\n".join([*([f"[{name}]"] if name else []), *own, *inner])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Everything, from nothing to the report."""
    place = tmp_path_factory.mktemp("nano")
    written, out = place / "recipe.toml", place / "out"
    written.write_text(toml(tiny(place / "run")))
    numbers = run.recipe(written)
    stages = dict(recipe.stages(numbers, "cpu", out, 2, str(written)))
    for stage in stages.values():
        stage()
    return SimpleNamespace(
        numbers=numbers,
        out=out,
        model=out / "nano" / "broll_nano" / "model",
        work=place / "run",
        stages=stages,
    )


def test_what_was_trained_is_exported_loaded_and_makes_a_clip(made: SimpleNamespace) -> None:
    parts = load(made.model, "tiny-nano")
    assert parts.config.task == "ti2v"
    spec = pipeline.resolve(parse(model="tiny-nano", prompt="a lake at night", seed=1), parts.config)
    assert (spec.width, spec.height, spec.frames, spec.steps) == (64, 32, 17, 3)
    frames = torch.cat([e.frames for e in pipeline.generate(spec, parts) if isinstance(e, Frames)], dim=1)
    assert frames.shape == (3, 17, 32, 64)
    assert frames.isfinite().all()


def test_what_is_evaluated_is_what_the_engine_makes(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32: evaluation multiplies in bf16 where that is fast, which the engine does when it is told to."""
    monkeypatch.setattr(run, "dtype", lambda _: torch.float32)
    parts = load(made.model, "tiny-nano")
    torch.nn.init.normal_(
        parts.transformer.head.head.weight, std=0.1
    )  # hardly trained, it would hardly differ
    spec = pipeline.resolve(parse(model="tiny-nano", prompt=PROMPT, seed=5), parts.config)
    steps = [e for e in pipeline.generate(spec, parts) if isinstance(e, Step)]
    parts.transformer.use(attention.sdpa)
    pair = tuple(sampling.encode(parts.text, [parts.text.token_ids(p)] * 2) for p in (PROMPT, ""))
    noise = sampling.noise(Grid(5, 2, 4), 32, [5, 6], "cpu")
    ours = sampling.sample(
        parts.transformer, pair, noise, steps=3, guidance=made.numbers["defaults"]["guidance"], shift=4.0
    )
    torch.testing.assert_close(ours[:1], steps[-1].x0, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(ours[1:], ours[:1], atol=0.1)


def test_latents_that_were_kept_are_of_the_same_weights_prompts_and_steps(
    made: SimpleNamespace, tmp_path: Path
) -> None:
    maker = evaluate.Maker(load(made.model, "tiny-nano"), "cpu", tmp_path)
    once = maker.latents([PROMPT], [5])
    [file] = tmp_path.iterdir()
    run.save(file, {"latents": once + 1})
    assert torch.equal(maker.latents([PROMPT], [5]), once + 1)  # not made again
    torch.nn.init.normal_(maker.parts.transformer.head.head.weight)
    other = maker.latents([PROMPT], [5])
    assert not torch.allclose(other, once + 1) and not torch.allclose(other, once)
    maker.how["steps"] += 1
    maker.latents([PROMPT], [5])
    maker.latents([PROMPT], [6])
    maker.latents([PROMPT], [5], torch.zeros(1, 32, 1, 2, 4))
    assert len(list(tmp_path.iterdir())) == 5


def test_a_first_picture_stays_and_changes_what_follows(made: SimpleNamespace) -> None:
    parts = load(made.model, "tiny-nano")
    parts.transformer.use(attention.sdpa)
    torch.nn.init.normal_(parts.transformer.head.head.weight, std=0.1)  # hardly trained, it would hardly look
    text = sampling.encode(parts.text, [parts.text.token_ids(PROMPT)])
    noise = sampling.noise(Grid(5, 2, 4), 32, [5], "cpu")
    how: dict[str, Any] = {"steps": 2, "guidance": 1.0, "shift": 4.0}
    free = sampling.sample(parts.transformer, (text, None), noise, **how)
    given = sampling.sample(parts.transformer, (text, None), noise, **how, first=torch.zeros(1, 32, 1, 2, 4))
    assert not given[:, :, 0].any()
    assert (given[:, :, 1:] - free[:, :, 1:]).abs().max() > 1e-4


def test_the_student_is_a_lora_that_says_how_it_is_sampled(made: SimpleNamespace, tmp_path: Path) -> None:
    beside, merged = (load(made.model, "tiny-nano").transformer for _ in range(2))
    pairs = load_file(made.model / export.STUDENT)  # so few batches teach it next to nothing: exaggerate
    pairs |= {name: torch.randn_like(pair) / 10 for name, pair in pairs.items() if "lora_B" in name}
    with safe_open(made.model / export.STUDENT, "pt") as written:
        (tmp_path / "loras").mkdir()
        save_file(pairs, tmp_path / export.STUDENT, written.metadata())
    file = lora_files.read(tmp_path / export.STUDENT)
    how = export.student(merged, tmp_path)
    assert how == {"steps": 4, "guidance": 1.0, "shift": 4.0, "sampler": "euler", "grid": "distilled"}
    known = lora_facts.facts(file)
    assert known is not None and known.distilled
    plain = {name: value.clone() for name, value in beside.named_parameters()}
    assert any(not torch.equal(value, plain[name]) for name, value in merged.named_parameters())
    lora.attach(beside, [(file, 1.0, None)])
    x, time, text = torch.randn(1, 32, 3, 2, 4), torch.tensor([500.0]), torch.randn(1, 6, 32)
    with torch.inference_mode():
        one, other = (m(x, time, m.context(Grid(3, 2, 4), text)) for m in (beside, merged))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert export.student(merged, made.model / "vae") == {}  # where there is none


def test_the_report_tells_of_teacher_and_student(made: SimpleNamespace) -> None:
    text = (made.out / "nano" / "REPORT.md").read_text()
    assert all(f"| {key} |" in text for key in KEYS)
    assert "| teacher | student |" in text
    for name in ("teacher", "student"):
        assert (made.out / "docs" / "images" / f"nano_{name}.jpg").stat().st_size > 1000
    found = json.loads((made.out / "report.json").read_text())
    assert {"psnr", "picture", "student's picture", "diversity", "student's flicker"} <= found.keys()
    assert {f"{name} camera" for name in ("teacher", "student")} <= found.keys()
    with safe_open(made.out / "training" / "measures.safetensors", "pt") as file:
        assert file.metadata().keys() == set(KEYS)


def test_the_decoder_goes_on_and_latents_stay_what_they_are(made: SimpleNamespace) -> None:
    first, last = run.load(made.work / "vae.pt"), run.load(made.work / "vae_final.pt")
    assert first is not None and last is not None
    changed = {
        name for name, value in last["model"].items() if not torch.equal(value, first["average"][name])
    }
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    assert any(name.startswith("decoder.up_blocks") for name in changed)


def test_a_move_with_half_the_share_is_rendered_half_as_often() -> None:
    numbers = run.recipe()
    numbers["render"]["share"] = {"pan left": 2.0}
    cameras = [render.scene(i, 1).camera for i in range(3000) if render.wanted(numbers, i)]
    others = len([camera for camera in cameras if camera != "pan left"]) / 14
    assert cameras.count("pan left") / others == pytest.approx(2.0, rel=0.15)


def test_a_recipe_may_hold_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text("[minutes.cuda]\nvae = 0.0\n")
    numbers, whole = run.recipe(tmp_path / "more.toml"), run.recipe()
    assert numbers["minutes"]["cuda"] == whole["minutes"]["cuda"] | {"vae": 0.0}
    assert numbers | {"minutes": 0} == whole | {"minutes": 0}
    for name, text in (("none.toml", None), ("bad.toml", "vae = ")):
        if text:
            (tmp_path / name).write_text(text)
        with pytest.raises(SystemExit, match=f"{name} is no recipe"):
            run.recipe(tmp_path / name)


def test_a_part_of_the_stages(made: SimpleNamespace) -> None:
    whole = recipe.stages(made.numbers, "cpu", made.out, 1, None)
    assert [name for name, _ in recipe.part(whole, "decoder", "student")] == ["transformer", "student"]
    assert recipe.part(whole, None, "evaluate") == whole
    with pytest.raises(SystemExit, match="no stage paint: they are fill"):
        recipe.part(whole, "paint", "evaluate")


def test_stages_that_are_done_are_not_done_again(made: SimpleNamespace) -> None:
    files = [made.work / name for name in ("text.pt", "vae_final.pt", "clips/00002.npy")]
    before = [path.stat().st_mtime_ns for path in files]
    for name in ("fill", "text", "vae"):
        made.stages[name]()
    assert [path.stat().st_mtime_ns for path in files] == before


def test_what_the_measures_learnt_from_is_kept_apart_from_its_labels(made: SimpleNamespace) -> None:
    kept = run.load(run.work_folder(made.numbers) / "measures.pt")
    own = made.numbers["measures"]
    assert len(kept["judged"]["camera"]) == own["held_out"]
    assert len(kept["taught"]["camera"]) == own["plain"] + own["through"]
    for part in kept.values():
        assert part["flow"].shape == (len(part["camera"]), 10, 2, 10, 16)
        assert part["frames"].shape == (len(part["camera"]), 4, 3, 60, 96)
        assert set(measures.TABLES) <= set(part)


def test_only_the_clips_that_the_preview_is_fitted_to_keep_their_pixels(made: SimpleNamespace) -> None:
    numbers = made.numbers
    rendered = range(numbers["render"]["count"])
    kept = [i for i in rendered if i < numbers["render"]["kept"]]
    assert sorted(int(path.stem) for path in (made.work / "latents").glob("*.pt")) == list(rendered)
    assert sorted(int(path.stem) for path in (made.work / "clips").glob("*.npy")) == kept


def test_training_goes_on_from_its_checkpoint(made: SimpleNamespace) -> None:
    before = run.load(made.work / "transformer.pt")
    assert before is not None and before["step"] > 0
    trainer = transformer.Trainer(made.numbers, "cpu")
    assert (trainer.first, trainer.seen) == (before["step"], before["clips"])
    assert trainer.clock.spent >= before["spent"]
    moments = trainer.optimizers[1].state_dict()["state"]
    assert moments and moments[0]["step"] == before["step"]
    text = pipeline.conditioning.Text(torch.randn(2, 7, 32))
    value = trainer.learn(trainer.first, torch.randn(2, 32, 3, 2, 4), text, random.Random(1))
    assert value.isfinite()
    weights = [trainer.model.state_dict()[name] for name in before["model"]]
    assert any(
        not torch.equal(now, then) for now, then in zip(weights, before["model"].values(), strict=True)
    )


def test_training_goes_on_from_exported_weights(made: SimpleNamespace, tmp_path: Path) -> None:
    """What is restored is what was exported: exported again, it is the same."""
    elsewhere = made.numbers | {"work": str(tmp_path / "run")}
    export.restore(elsewhere, made.model)
    for name in ("clips", "latents"):
        (tmp_path / "run" / name).symlink_to(made.work / name)
    export.export(elsewhere, tmp_path / "model")
    files = {p.relative_to(made.model) for p in made.model.rglob("*") if p.is_file()}
    assert files == {
        p.relative_to(tmp_path / "model") for p in (tmp_path / "model").rglob("*") if p.is_file()
    }
    assert Path(export.STUDENT) in files
    for path in files:
        if path.suffix == ".safetensors":
            then, now = load_file(made.model / path), load_file(tmp_path / "model" / path)
            assert then.keys() == now.keys()
            assert all(torch.equal(value, now[name]) for name, value in then.items())
        elif path.name != "broll.json":
            assert (tmp_path / "model" / path).read_text() == (made.model / path).read_text()
    then, now = (
        json.loads((folder / "broll.json").read_text()) for folder in (made.model, tmp_path / "model")
    )
    colours = [torch.tensor(about.pop("preview")) for about in (then, now)]  # fitted anew, by least squares
    torch.testing.assert_close(*colours, rtol=0, atol=1e-3)
    assert then == now
    assert transformer.Trainer(elsewhere, "cpu").first == 0
    with pytest.raises(SystemExit, match="already has"):
        export.restore(elsewhere, made.model)


def test_a_student_is_kept_as_long_as_its_teacher_is(made: SimpleNamespace, tmp_path: Path) -> None:
    def fresh() -> tuple[dict[str, student.Adapted], torch.optim.AdamW]:
        adapters = student.adapt(transformer.average(made.numbers), 4)
        return adapters, torch.optim.AdamW([p for a in adapters.values() for p in (a.down, a.up)])

    state = run.load(made.work / "student.pt")
    assert state is not None and state["updates"] > 0
    adapters, optimizer = fresh()
    kept = student.Kept(made.work / "student.pt", adapters, optimizer, transformer.steps(made.numbers))
    assert (kept.updates, kept.spent) == (state["updates"], state["spent"])
    for name, (down, up) in state["adapters"].items():
        assert torch.equal(adapters[name].down, down) and torch.equal(adapters[name].up, up)
    assert optimizer.state_dict()["state"][0]["step"] == state["updates"]
    adapters, optimizer = fresh()
    other = student.Kept(made.work / "student.pt", adapters, optimizer, teacher=kept.teacher + 1)
    assert (other.updates, other.spent) == (0, 0.0)
    assert not optimizer.state_dict()["state"]
    for name, (down, up) in state["adapters"].items():  # but it begins where the other one's student is
        assert torch.equal(adapters[name].down, down) and torch.equal(adapters[name].up, up)


def test_latents_are_of_a_clip_and_its_mirror_image(made: SimpleNamespace) -> None:
    pool, model = latents.Latents(made.numbers, "cpu"), vae.load(made.numbers)
    place = pool.indices.index(2)
    clip = render.load_clip(made.work, 2)
    with torch.no_grad():
        for mirrored in (False, True):
            shown = render.to_float(clip.flip(3) if mirrored else clip).transpose(0, 1)[None]
            encoded = model.encode(shown)
            picked = pool.pick([place], [mirrored], 5)
            assert picked.shape == (1, 32, 5, 2, 4)
            assert (
                picked - encoded
            ).norm() < 0.06 * encoded.norm()  # in bf16 where that is fast, kept in fp16
    assert not torch.allclose(*(pool.pick([place], [m], 5) for m in (False, True)), atol=0.02)


def test_the_first_latents_of_a_clip_serve_every_length(made: SimpleNamespace) -> None:
    """What the transformer's training relies on when it cuts clips short."""
    model = vae.load(made.numbers)
    clip = render.to_float(render.load_clip(made.work, 0)).transpose(0, 1)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.encode(clip)[:, :, :2], model.encode(clip[:, :, :5]))


def test_a_mirrored_clip_gets_a_mirrored_caption_and_a_dropped_one_none(made: SimpleNamespace) -> None:
    index = next(i for i in range(1000) if render.scene(i, 1).camera == "pan left")
    draws._open(made.work / "tokenizer")
    ids = draws._ids(1, [(index, False, False, 3), (index, True, False, 3), (index, True, True, 3)])
    plain, mirrored, dropped = (draws._tokenizer[-1].decode(row, skip_special_tokens=True) for row in ids)
    assert "left" in plain and "left" not in mirrored
    assert dropped == ""


def test_a_clip_that_is_made_is_measured_by_every_measure(made: SimpleNamespace) -> None:
    model = measures.load(made.out / "training" / "measures.safetensors")
    clip = render.load_clip(made.work, 4)
    [names] = model.names(features.stack([features.features(clip)]))
    assert names.keys() == measures.TABLES.keys()
    assert all(names[key] in table for key, table in measures.TABLES.items())


def test_what_a_run_leaves_is_packed_in_pieces_of_one_tar(made: SimpleNamespace, tmp_path: Path) -> None:
    recipe.pack(made.out, tmp_path / "packed", piece=50_000)
    pieces = sorted((tmp_path / "packed").iterdir(), key=lambda path: int(path.suffix[1:]))
    assert len(pieces) > 2
    with tarfile.open(fileobj=io.BytesIO(b"".join(path.read_bytes() for path in pieces))) as tar:
        names = tar.getnames()
    assert {"nano/REPORT.md", "docs/images/nano_teacher.jpg", "measures.safetensors", "report.json"} <= set(
        names
    )
