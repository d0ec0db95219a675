"""The plan: what it switches on, what it says of a clip that does not fit, and published runs beside its arithmetic."""

import dataclasses
import json
import statistics

import pytest
import torch

from benchmarks import published
from broll import cards, catalog, nearest, pace, plan, wiring
from broll.engine import rates
from broll.engine.config import PUBLISHED
from broll.engine.load import Precision
from broll.errors import BadOption
from broll.settings import Loading, Settings
from broll.spec import parse

TIMED = [row for row in published.ROWS if row.kernel == published.EAGER]
WEIGHED = [row for row in published.ROWS if row.parts is not None]
CLASS = {"H100": "Hopper", "H200": "Hopper", "H20": "H20", "A100": "Ampere", "RTX 4090": "Ada"}


def label(row):
    return f"{row.source[:12]}-{row.gpu}-{row.model}-{row.size[0]}"


def on(card, name, offload="auto", **fields):
    config = PUBLISHED[name]
    spec = plan.whole(parse(model=name, prompt="a lake", **fields), config)
    target = plan.published(cards.find(card), config)
    return plan.make(spec, config, target, gpu_hour=2.0, offload=offload), config


QUICK = (WEIGHED[0], WEIGHED[-1])  # the least and the most that is in memory; the others are alike, and slow


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=() if row in QUICK else pytest.mark.slow) for row in WEIGHED], ids=label
)
def test_published_peaks_are_met_within_ten_percent(row):
    assert published.gigabytes(row) == pytest.approx(row.gigabytes, rel=0.10)


@pytest.mark.parametrize("kind", ["Hopper", "H20", "Ampere", "Ada"])
def test_a_class_of_cards_has_one_share_the_mean_of_its_published_runs(kind):
    reached = [published.share(row) for row in TIMED if CLASS[row.gpu] == kind]
    card = next(card for card in cards.CARDS.values() if CLASS.get(card.name) == kind)
    assert card.share == pytest.approx(statistics.mean(reached), abs=0.006)


def test_no_published_run_is_faster_than_its_card_but_those_that_say_why():
    for row in published.ROWS:
        fast = "fp8" in row.why  # its rate is twice that of bf16
        assert published.share(row) < (2.0 if fast else 1.0 if row.why else 0.7)


def test_every_published_run_is_matched_or_says_why_not():
    for row in published.ROWS:
        assert row.why or (row.kernel and (row.gigabytes is None or row.parts)), label(row)


# --- choosing ---------------------------------------------------------------------------------------------


def test_a_clip_that_fits_switches_nothing_on():
    made, _ = on("H100", "wan2.1-t2v-1.3b")
    assert made.fits
    assert made.on == ()
    assert made.money == pytest.approx(made.total_s / 1800, abs=1e-4)


def test_the_text_encoder_is_let_go_when_that_makes_it_fit():
    made, _ = on("L40S", "wan2.1-t2v-14b")
    assert [lever.name for lever in made.on] == ["text_first"]
    assert made.fits
    without, _ = on("H100", "wan2.1-t2v-14b")
    assert without.estimate.memory_bytes > 45e9 > made.estimate.memory_bytes


@pytest.mark.slow  # 12 s of counting; tests/cli/test_plan.py asks the same of a small model
def test_a_clip_that_does_not_fit_is_told_what_does():
    made, config = on("RTX 4090", "wan2.1-t2v-14b", offload="off")
    assert not made.fits
    said = nearest.sentence(made, config)
    assert said.endswith("81 frames at 1280x720 do not fit")
    assert "81 frames at 832x480 fit with fp8 weights" in said
    assert "\n" not in said


@pytest.mark.slow
def test_what_is_said_to_fit_fits():
    made, config = on("RTX 5090", "wan2.1-t2v-14b", offload="off")
    assert not made.fits
    for form in nearest.FORMS:
        if plan.make(made.spec, config, plan.in_form(made.target, config, form), offload="off").fits:
            assert f"with {nearest.FORMS[form]} weights 81 frames at 1280x720 fit" in nearest.nearest(
                made, config
            )
            break


def test_blocks_are_streamed_when_nothing_less_makes_it_fit():
    made, _ = on("RTX 4090", "wan2.1-t2v-14b", width=832, height=480)
    assert [lever.name for lever in made.on] == ["text_first", "block_streaming"]
    assert made.fits
    assert not on("RTX 4090", "wan2.1-t2v-14b", "off", width=832, height=480)[0].fits


@pytest.mark.slow
def test_who_has_switched_streaming_off_is_told_that_it_would_do():
    made, config = on("RTX 4090", "wan2.1-t2v-14b", "off", width=832, height=480)
    assert nearest.nearest(made, config)[0] == "with block streaming 81 frames at 832x480 fit"


def test_blocks_are_streamed_when_asked_for_and_then_the_bus_may_be_the_slower():
    made, _ = on("H100", "wan2.1-t2v-14b", "on", width=832, height=480, frames=5)
    plain, _ = on("H100", "wan2.1-t2v-14b", width=832, height=480, frames=5)
    assert [lever.name for lever in made.on] == ["block_streaming"]
    matrices = 40 * (8 * 5120**2 + 2 * 5120 * 13824) * 2  # bytes, in bf16
    assert made.estimate.streamed == (matrices, matrices // 20)
    assert made.denoise_s == pytest.approx(100 * matrices / cards.BUS)  # 50 steps in two branches
    assert plain.denoise_s < made.denoise_s
    assert plain.estimate.memory_bytes - made.estimate.memory_bytes == matrices - matrices // 20
    long, _ = on("H100", "wan2.1-t2v-14b", "on")
    assert long.denoise_s == pytest.approx(on("H100", "wan2.1-t2v-14b")[0].denoise_s)


def test_a_14b_clip_at_720p_runs_in_twelve_gigabytes():
    """With the text encoder let go and blocks streamed; decoded in fp32, also in tiles. Every stage fits."""
    config = PUBLISHED["wan2.1-t2v-14b"]
    spec = plan.whole(parse(model=config.name, prompt="a lake"), config)
    assert (spec.width, spec.height, spec.frames) == (1280, 720, 81)
    target = dataclasses.replace(plan.published(cards.find("RTX 4090"), config), memory=12e9)
    for decoder, names, tiles in ((torch.bfloat16, [], 1), (None, ["vae_tiling"], 2)):
        how = dataclasses.replace(target.precision, decoder=decoder)
        made = plan.make(spec, config, dataclasses.replace(target, precision=how))
        assert made.fits
        assert [lever.name for lever in made.on] == ["text_first", "block_streaming", *names]
        assert made.tiles == tiles
        for stage in made.estimate.stages:
            assert made.estimate.base + stage.peak_bytes <= 12e9, stage.name


def test_decoding_is_tiled_when_it_is_what_does_not_fit_and_no_finer_than_needed():
    made, config = on("H100", "wan2.1-t2v-1.3b", width=1024, height=704, frames=21)
    cost = made.estimate
    assert max(cost.stages, key=lambda stage: stage.peak_bytes).name == "decode"
    counts = []
    for share in (1.0, 0.8, 0.6):
        weights = cost.base + cost.weight_bytes
        memory = weights + share * cost.stage("decode").working
        target = dataclasses.replace(made.target, memory=memory)
        smaller = plan.make(made.spec, config, target, can=plan.tilings())
        assert smaller.fits
        assert all(lever.name == "vae_tiling" for lever in smaller.on)
        assert len(smaller.on) <= 1
        counts.append(smaller.tiles)
    assert counts[0] == 1 < counts[1] <= counts[2]
    assert smaller.estimate.stage("decode").operations.total > cost.stage("decode").operations.total


@pytest.mark.slow
def test_what_fits_nowhere_is_said_so():
    made, config = on("RTX 4090", "wan2.1-t2v-14b")
    tiny = dataclasses.replace(made, target=dataclasses.replace(made.target, memory=1e9))
    assert nearest.nearest(tiny, config) == []
    assert "nor does anything smaller" in nearest.sentence(tiny, config)


def test_cards_are_known_by_name_and_others_are_refused_with_the_list():
    assert cards.find("rtx-4090") is cards.find("4090") is cards.CARDS["RTX 4090"]
    with pytest.raises(BadOption, match="known are H100, H200"):
        cards.find("Voodoo 2")


# --- pace -------------------------------------------------------------------------------------------------


def test_rates_are_measured_once_and_kept_for_this_machine(place, tmp_path):
    settings = Settings(data=tmp_path / "nothing yet")
    config = wiring.describe(catalog.find(settings, "tiny"))
    where = torch.device("cpu")
    first = pace.measured(settings, config, where, 24, 2048)
    assert first.linear > 0
    assert pace.measured(settings, config, where, 24, 2048) == first
    table = json.loads((settings.data / "rates.json").read_text())
    assert list(table) == [f"{rates.name_of(where)}, torch {torch.__version__}"]
    (settings.data / "rates.json").write_text('{"x": [1]}')
    assert pace.measured(settings, config, where, 24, 2048).copy > 0


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", '{"tiny": 3}', '{"tiny": {"denoise": 1}}', '{"tiny": {"denoise": -1, "decode": 2}}'],
)
def test_a_damaged_file_of_timings_is_as_good_as_none(place, text):
    settings = Settings()
    (settings.data / "timings.json").write_text(text)
    assert pace.seen(settings, "tiny") is None


def tiny(settings):
    model = catalog.find(settings, "tiny")
    config = wiring.describe(model)
    return model, config, plan.whole(parse(model="tiny", prompt="a lake"), config)


def test_what_was_seen_is_what_is_planned(place):
    settings = Settings()
    model, config, spec = tiny(settings)
    before = plan.make(spec, config, plan.here(spec, config, settings, model))
    assert before.target.source == "measured"
    pace.remember(settings, "tiny", before.estimate, 12.0, 3.0)
    after = plan.make(spec, config, plan.here(spec, config, settings, model))
    assert after.target.source == "seen"
    assert (after.denoise_s, after.decode_s) == pytest.approx((12.0, 3.0))


@pytest.mark.parametrize("other", [{"int8": True}, {"attention": "blocked"}, {"vae_precision": "bfloat16"}])
def test_what_was_seen_with_other_settings_is_not_planned(place, other):
    settings = Settings()
    model, config, spec = tiny(settings)
    cost = plan.make(spec, config, plan.here(spec, config, settings, model)).estimate
    pace.remember(Settings(**other), "tiny", cost, 12.0, 3.0)
    assert pace.seen(settings, "tiny") is None
    assert pace.seen(Settings(**other), "tiny") is not None


def test_what_a_run_too_short_to_tell_showed_is_not_planned(place):
    settings = Settings()
    model, config, spec = tiny(settings)
    cost = plan.local(spec, config, settings, model).estimate
    pace.remember(settings, "tiny", cost, pace.LONG / 2, 0.1)
    assert pace.seen(settings, "tiny") is None


def test_a_plan_that_streams_goes_by_runs_that_streamed(place):
    settings = Settings()
    model, config, spec = tiny(settings)
    cost = plan.local(spec, config, settings, model).estimate
    pace.remember(settings, "tiny", cost, 12.0, 3.0)
    pace.remember(settings, "tiny", cost, 24.0, 3.0, streamed=True)
    whole, streamed = (plan.local(spec, config, Settings(offload=how), model) for how in ("off", "on"))
    assert (whole.denoise_s, streamed.denoise_s) == pytest.approx((12.0, 24.0))


def test_int8_is_not_counted_where_it_cannot_be_and_that_is_said(place, monkeypatch):
    import torch

    from broll.engine import int8

    settings = Settings(int8=True)
    model, config, spec = tiny(settings)
    cpu = torch.device("cpu")
    nothing = "int8 changes nothing of tiny: this device, or this torch, has no such products"
    for reach, said in ((127, []), (0, [nothing])):
        monkeypatch.setattr(int8, "reach", lambda _, reach=reach: reach)
        assert wiring.precision(config, cpu, settings.loading()).int8 == bool(reach)
        assert wiring.unmet(wiring.load(model, config, settings.loading()), settings) == said
        made = plan.make(spec, config, plan.here(spec, config, settings, model), offload="on")
        assert made.switched_on(plan.STREAMING) == (not reach)  # only what is not rounded can be streamed
    assert plan.on_a_gpu(config, settings.loading()).int8


def test_what_the_weights_form_makes_idle_is_said(place):
    from dataclasses import replace

    settings = Settings(int8=True, native_fp8=True)
    model = catalog.find(settings, "tiny")
    parts = wiring.load(model, wiring.describe(model), settings.loading())
    (line,) = wiring.unmet(parts, settings)
    assert line.startswith("native_fp8 changes nothing of tiny: ")
    quantized = replace(parts, digests=())  # as of a file whose matrices are all quantized
    assert "its matrices are quantized already" in wiring.unmet(quantized, settings)[0]
    assert wiring.unmet(quantized, Settings()) == []


# --- the lever --------------------------------------------------------------------------------------------


def test_a_clip_is_the_same_when_the_text_encoder_was_let_go(place):
    from broll.engine import pipeline
    from broll.engine.text_encoder import RememberedText

    model = catalog.find(Settings(), "tiny")
    config = wiring.describe(model)
    spec = plan.whole(parse(model="tiny", prompt="a lake", seed=3), config)
    whole = wiring.load(model, config)
    freed = wiring.load(model, config, Loading(text_first=True), prompts=plan.prompts(spec))
    assert isinstance(freed.text, RememberedText)
    frames = [
        torch.cat([e.frames for e in pipeline.generate(spec, parts) if isinstance(e, pipeline.Frames)], dim=1)
        for parts in (whole, freed)
    ]
    assert torch.equal(*frames)


def test_frames_are_the_same_in_tiles_and_the_record_says_so(place):
    from broll.engine import pipeline

    model = catalog.find(Settings(), "tiny")
    config = wiring.describe(model)
    spec = plan.whole(parse(model="tiny", prompt="a lake", seed=3, width=64, height=64), config)
    parts = wiring.load(model, config)
    tiled = wiring.tiled(parts, 1)
    assert tiled.levers == ()
    whole = [e.frames for e in pipeline.generate(spec, tiled) if isinstance(e, pipeline.Frames)]
    tiled = wiring.tiled(parts, 2)
    assert tiled.levers == ("vae_tiling",)
    events = list(pipeline.generate(spec, tiled))
    frames = [e.frames for e in events if isinstance(e, pipeline.Frames)]
    torch.testing.assert_close(torch.cat(frames, dim=1), torch.cat(whole, dim=1), atol=1e-6, rtol=0)
    told = [(e.done, e.total) for e in events if isinstance(e, pipeline.Decoded)]
    assert told == [(i + 1, 6) for i in range(6)]
    assert wiring.tiled(tiled, 1).levers == ()


@pytest.mark.parametrize(
    ("asked", "on_a_cpu", "on_a_gpu"),
    [("auto", None, torch.bfloat16), ("float32", None, None), ("bfloat16", torch.bfloat16, torch.bfloat16)],
)
def test_what_frames_are_decoded_in_can_be_said(place, asked, on_a_cpu, on_a_gpu):
    config = wiring.describe(catalog.find(Settings(), "tiny"))
    devices = torch.device("cpu"), torch.device("cuda")
    assert tuple(
        wiring.precision(config, where, Loading(vae_precision=asked)).decoder for where in devices
    ) == (on_a_cpu, on_a_gpu)
    assert plan.on_a_gpu(config, Loading(vae_precision=asked)).decoder == on_a_gpu


def test_a_model_is_loaded_as_was_said_and_the_record_says_so(place):
    from broll.engine import snapshot

    model = catalog.find(Settings(), "tiny")
    config = wiring.describe(model)
    parts = [wiring.load(model, config, Loading(vae_precision=asked)) for asked in ("auto", "bfloat16")]
    assert [one.vae.decoder_dtype for one in parts] == [torch.float32, torch.bfloat16]
    assert [snapshot.conditions(one)["vae"] for one in parts] == [
        "torch.float32", "torch.float32, decoder torch.bfloat16",
    ]  # fmt: skip


def test_precision_is_that_of_the_device_that_is_planned_for():
    low = torch.bfloat16
    assert on("H100", "wan2.1-t2v-1.3b")[0].target.precision == Precision(low, low, decoder=low)
