"""A spec meets the coach: what it knows of a model, and what becomes of prompt and negative prompt."""

import re
import shutil
from dataclasses import replace

import pytest

from broll import catalog, coaching
from broll.engine.config import PUBLISHED, TextConfig
from broll.errors import BadOption, BadPrompt
from broll.prompts import coach
from broll.prompts.findings import Read
from broll.settings import Settings
from broll.spec import Title, parse

SMALL = PUBLISHED["wan2.1-t2v-1.3b"]


def known(prompt="a lake", config=SMALL, settings=None, **fields):
    spec = parse(model=config.name, prompt=prompt, **fields)
    return spec, coaching.context(config, spec, settings or Settings())


def test_the_coach_knows_the_models_defaults_and_what_was_said():
    _, context = known()
    assert (context.task, context.width, context.height, context.small) == ("t2v", 832, 480, True)
    assert context.seconds == pytest.approx(81 / 16)
    assert context.base_negative.startswith("色调艳丽")
    _, context = known(config=PUBLISHED["wan2.1-i2v-14b-720p"], frames=33, guidance=1, width=720, height=1280)
    assert (context.task, context.width, context.small, context.guidance) == ("i2v", 720, False, 1)
    assert context.seconds == pytest.approx(33 / 16)


def test_off_changes_nothing():
    spec, context = known()
    assert coaching.coached(spec, context, "off") == (spec, None)


def test_check_keeps_the_prompt_and_fits_the_negative_prompt_to_it():
    spec, context = known("static wide shot of a lake, watercolor style, no people")
    done, report = coaching.coached(spec, context, "check")
    assert done.prompt == spec.prompt
    tokens = done.negative_prompt.replace("，", ",").split(",")
    assert not {"静态", "静止", "风格"} & {token.strip() for token in tokens}
    assert "people" in done.negative_prompt
    assert {why.text for why in report.negative_dropped} >= {"静态", "风格"}
    assert report.prompt == spec.prompt
    assert report.given is None


@pytest.mark.parametrize("mode", ["check", "fix"])
def test_a_negative_prompt_of_ones_own_stands(mode):
    spec, context = known("static wide shot of a lake", negative_prompt="static, blur")
    done, report = coaching.coached(spec, context, mode)
    assert done.negative_prompt == report.negative_prompt == "static, blur"


def test_fix_rewrites_and_lifts_words_out_of_the_picture():
    spec, context = known('a shop with a sign that says "OPEN"', titles=[Title(text="MINE")])
    done, report = coaching.coached(spec, context, "fix")
    assert [title.text for title in done.titles] == ["MINE", "OPEN"]
    assert "OPEN" not in done.prompt
    assert report.given == spec.prompt
    assert report.titles == ("OPEN",)


def test_a_preset_or_style_that_is_not_there_is_refused_with_those_that_are():
    spec, _ = known()
    for options, there in (({"use": "x"}, "ambient-loop"), ({"style": "x"}, "cinematic")):
        with pytest.raises(BadOption, match=there):
            coaching.context(SMALL, spec, Settings(), **options)


def test_what_the_operator_blocks_is_refused_whatever_the_mode():
    settings = Settings(blocklist=["burning flag"])
    spec, context = known("a burning  flag on a square", settings=settings)
    with pytest.raises(BadPrompt, match="blocked"):
        coaching.refuse_blocked(spec.prompt, context)
    coaching.refuse_blocked("a flag on a square", context)


def test_an_endpoint_is_only_there_if_the_settings_name_one(tmp_path):
    assert coaching.endpoint(Settings()) is None
    made = coaching.endpoint(Settings(coach_url="http://x/v1", coach_key="k", data=tmp_path))
    assert (made.url, made.key, made.cache) == ("http://x/v1", "k", tmp_path / "coach")
    assert "k" not in repr(made).replace("key", "")


def heard(prompt, model, settings, words=2048):
    config = replace(SMALL, name=model, text=TextConfig(vocab_size=words))
    return {finding.rule: finding for finding in coach.check(prompt, known(prompt, config, settings)[1])}


def test_letters_that_the_models_own_vocabulary_lacks_are_said(tmp_path):
    settings = Settings(models=tmp_path)
    assert "只" in heard("一只猫在草地上奔跑", "nano", settings)["LANG-1"].message
    assert "LANG-1" not in heard("a cat runs across the meadow – slowly", "nano", settings)
    chinese = "一只猫在草地上奔跑"
    assert "LANG-1" not in heard(chinese, SMALL.name, settings)  # it is not here, so nobody knows
    assert "LANG-1" not in heard(chinese, "nano", settings, words=256_384)  # that would know them
    read = coaching.read(settings, "nano", 2048, "a café on a 山 by 山")
    assert read.unknown == "é山" and read.tokens > 8


@pytest.mark.parametrize("words", [2048, 256_384])
def test_a_long_prompt_is_measured_by_the_models_own_tokenizer(tmp_path, words):
    finding = heard("a lake " * 1000, "nano", Settings(models=tmp_path), words)["LEN-1"]
    assert finding.severity == "error" and re.search(r"\b2\d\d\d tokens", finding.message), finding.message


def test_a_tokenizer_that_is_missing_or_damaged_is_no_reason_not_to_check(tmp_path):
    folder = shutil.copytree(
        catalog.embedded_nano(), tmp_path / "mine", ignore=shutil.ignore_patterns("*.safetensors")
    )
    settings, prompt = Settings(models=tmp_path), "一只猫"
    assert coaching.read(settings, "mine", 2048, prompt).unknown == prompt
    coaching.tokenizer.cache_clear()
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    assert coaching.read(settings, "mine", 2048, prompt) == Read()
    (folder / "tokenizer" / "tokenizer.json").unlink()
    assert coaching.read(settings, "mine", 2048, prompt) == Read()
    assert coaching.read(settings, "nowhere", 2048, prompt) == Read()
