"""The numbers of the report, on clips whose answer is known; and its tables."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from training import evaluate, features, measures, quality, render, report
from training.camera import CAMERAS
from training.features import Features
from training.measures import Examples, Measures
from training.report import KEYS, Judged
from training.scenes import Scene, sample


def picture(seed: int = 1) -> torch.Tensor:
    """[3, 2, 32, 48]: soft blobs."""
    torch.manual_seed(seed)
    return (
        torch.nn.functional.interpolate(torch.rand(3, 2, 4, 6), size=(32, 48), mode="bicubic").clamp(0, 1) * 2
        - 1
    )


def test_psnr_is_of_values_from_minus_one_to_one() -> None:
    a = torch.zeros(3, 2, 8, 8)
    assert quality.psnr(a, a + 0.2) == pytest.approx(20.0, abs=1e-4)  # a tenth of the range
    assert quality.psnr(a, a + 0.02) == pytest.approx(40.0, abs=1e-3)
    assert quality.psnr(a, a) == math.inf


def test_ssim_is_one_for_the_same_and_falls_with_noise_and_blur() -> None:
    a = picture()
    assert quality.ssim(a, a) == pytest.approx(1.0, abs=1e-5)
    noisy = [quality.ssim(a, (a + level * torch.randn_like(a)).clamp(-1, 1)) for level in (0.05, 0.2, 0.6)]
    assert 1 > noisy[0] > noisy[1] > noisy[2] > 0
    blurred = torch.nn.functional.avg_pool2d(a, 7, 1, 3)
    assert quality.ssim(a, blurred) < 0.99
    brighter = quality.ssim(a * 0.5, a * 0.5 + 0.05)
    assert noisy[1] < brighter < 1  # what the eye minds less


def test_flicker_is_what_neither_stays_nor_glides() -> None:
    still = torch.full((8, 3, 4, 4), 100, dtype=torch.uint8)
    fading = (10 * torch.arange(8)).view(8, 1, 1, 1).expand(8, 3, 4, 4).to(torch.uint8)
    flashing = still + 10 * (torch.arange(8) % 2).view(8, 1, 1, 1).to(torch.uint8)
    assert quality.flicker(still) == quality.flicker(fading) == 0
    assert quality.flicker(flashing) == pytest.approx(20)


def test_diversity_is_none_for_copies_and_one_where_prompts_say_nothing() -> None:
    torch.manual_seed(1)
    prompts = torch.randn(4, 1, 50)
    assert quality.diversity(prompts.expand(4, 3, 50).flatten(0, 1), 3) == pytest.approx(0, abs=1e-3)
    assert quality.diversity(torch.randn(60, 50), 3) == pytest.approx(1, abs=0.1)
    some = quality.diversity((prompts + 0.5 * torch.randn(4, 3, 50)).flatten(0, 1), 3)
    assert 0.3 < some < 0.7


def test_flow_features_tell_left_from_right_at_any_size() -> None:
    """Shift a texture by 2 pixels in 160 a frame: the measured flow is that."""
    torch.manual_seed(1)
    texture = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 40), scale_factor=8, mode="bicubic")[0]
    clip = torch.stack([texture[:, :, 2 * i : 2 * i + 160] for i in range(41)]).clamp(0, 1)
    for size in (1.0, 0.75):
        shown = torch.nn.functional.interpolate(clip, scale_factor=size, mode="area")
        flow = features.features((shown * 255).byte()).flow
        assert flow.shape == (10, 2, 10, 16)
        assert flow[:, 0].median() == pytest.approx(-2, abs=0.2)
        assert flow[:, 1].median() == pytest.approx(0, abs=0.2)


def test_features_do_not_depend_on_length_or_size() -> None:
    clip = render.to_uint8(render.render(sample(random.Random(1)), frames=9, height=32, width=64))
    seen = features.features(clip)
    assert seen.flow.shape == (10, 2, 10, 16)
    assert seen.frames.shape == (4, 3, 60, 96)


def looked_at(scenes: list[Scene]) -> list[Features]:
    """Flows that tell the camera by one place of the grid; pictures that tell nothing."""
    seen = []
    for scene in scenes:
        flow = torch.randn(10, 2, 10, 16).half()
        flow[:, :, 5, CAMERAS.index(scene.camera)] += 20
        seen.append(Features(flow, torch.randint(256, (4, 3, 60, 96), dtype=torch.uint8)))
    return seen


def test_measures_learn_and_tell_labels() -> None:
    torch.manual_seed(1)
    rng = random.Random(1)
    scenes = [sample(rng) for _ in range(64)]
    told, model = Examples.of(looked_at(scenes), scenes), Measures()
    measures.fit(model, told, steps=40, batch=32)
    assert measures.accuracy(model, told)["camera"] > 0.8
    assert model.names(told.features)[3].keys() == measures.TABLES.keys()


def test_measures_also_learn_from_each_clip_in_a_mirror() -> None:
    """A renderer's clip, flipped, looks as its mirrored scene says: the flow to the left is one to the right."""
    scene = Scene("city", "noon", "pan left", "fast", "", 3)
    clip = render.to_uint8(render.render(scene, frames=33, height=80, width=128))
    both = measures.with_mirrored([features.features(clip)], [scene])
    names = [CAMERAS[place] for place in both.labels["camera"].tolist()]
    assert names == ["pan left", "pan right"]
    really = features.features(clip.flip(3))
    torch.testing.assert_close(both.features.frames[1], really.frames, atol=1, rtol=0)
    one, other = both.features.flow[1].float(), really.flow.float()
    assert (one - other).abs().median() < 0.1 * other.abs().median()
    assert one[:, 0].median() * both.features.flow[0, :, 0].float().median() < 0


def test_the_speed_of_a_camera_that_stands_is_not_asked() -> None:
    scenes = [sample(random.Random(1), camera) for camera in ("static", "handheld", "pan left")]
    assert (measures.targets(scenes)["speed"] >= 0).tolist() == [False, False, True]


def test_questions_ask_every_camera_as_often_and_every_third_in_unseen_words() -> None:
    asked = evaluate.questions(90, 1)
    assert [q.scene.camera for q in asked] == [*CAMERAS] * 6
    assert sum(q.unseen for q in asked) == 30
    assert asked == evaluate.questions(90, 1)
    assert asked != evaluate.questions(90, 2)
    for question in asked:
        labels = question.labels()
        assert all(getattr(question.scene, key) == value for key, value in labels.items())
        if question.scene.camera == "static":
            assert labels["camera"] == "static" and "speed" not in labels


def judged(asked: dict[str, str], seen: dict[str, str], *, unseen: bool = False) -> Judged:
    known = {"camera": "static", "light": "noon", "scene": "lake", "speed": "normal", "style": "plain"}
    return Judged("a lake", unseen, asked, known | seen, Image.new("RGB", (80, 20), "teal"))


def test_the_report_counts_what_was_asked_and_says_what_it_was_taken_for(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "own.safetensors", dict.fromkeys(KEYS, "0.5"))
    rows = [
        judged({"camera": "pan left", "scene": "lake"}, {"camera": "pan left"}),
        judged({"camera": "pan left"}, {"camera": "orbit"}, unseen=True),
        judged({"scene": "sea"}, {"scene": "lake"}),
    ]
    facts = {"psnr": 31.25, "ssim": 0.9, "diversity": 0.5, "teacher's flicker": 1.5}
    found = report.write(
        tmp_path, {"teacher": rows, "student": rows[:1]}, facts, "a command", tmp_path / "own.safetensors"
    )
    text = (tmp_path / "nano" / "REPORT.md").read_text()
    assert "Written by `a command`" in text
    assert "| camera | 50% (1/2) | 100% (1/1) | 0% (0/1) | 0% (0/0) | 92% | 50.0% |" in text
    assert "| pan left | 1/2 | orbit |" in text and "| sea | 0/1 | lake |" in text
    assert "| a lake * | no: orbit | - | - | - | - |" in text
    assert "31.2 dB" in text and "1.50 of 255" in text
    assert found["teacher camera"] == 0.5 and found["student scene"] == 1 and found["psnr"] == 31.25
    assert "nano_student.jpg" in text and (tmp_path / "docs" / "images" / "nano_student.jpg").exists()


def test_a_sheet_shows_clips_in_two_columns() -> None:
    assert report.sheet([judged({}, {})] * 5).size == (80, 30)
    assert report.sheet([judged({}, {})] * 100, count=4).size == (80, 20)
