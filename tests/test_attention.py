"""A kernel by name, through the service's parts: what it drops is told and written down, what cannot be is refused."""

import json

import pytest
import torch

from broll import catalog, wiring
from broll.engine import attention, pipeline
from broll.errors import BadOption
from broll.events import Clip, Work
from broll.renderer import Flag, Renderer
from broll.serving import running
from broll.settings import Settings
from broll.spec import parse


def nan(q, k, v, call):
    return torch.full_like(q, float("nan"))


def made(settings):
    config = wiring.describe(catalog.find(settings, "tiny"))
    spec = pipeline.resolve(parse(model="tiny", prompt="a lake", seed=1), config)
    *_, last = Renderer(settings).run(Work("job", "tiny", spec.model_dump_json(exclude_none=True)), Flag())
    return last


def record_of(settings):
    clip = made(settings)
    assert isinstance(clip, Clip), clip
    return json.loads(clip.record)


@pytest.fixture
def settings(tiny_models, tmp_path):
    return {"models": tiny_models, "data": tmp_path / "data", "threads": 1}


def test_a_job_whose_kernel_is_broken_is_made_by_another_and_says_so(settings, monkeypatch, capsys):
    monkeypatch.setitem(attention.BACKENDS, "nan", attention.Backend(nan))
    record = record_of(Settings(**settings, attention="nan"))
    assert capsys.readouterr().err.count("warning: attention nan was dropped, sdpa goes on") == 1
    assert record["attention"].startswith("nan dropped, sdpa used: it gave NaN or infinity")
    assert record["conditions"]["attention"] == "sdpa after nan"
    plain = record_of(Settings(**settings))
    assert plain["latents_sha256"] == record["latents_sha256"]
    assert plain["conditions"]["attention"] == "sdpa" and "attention" not in plain


def test_a_job_uses_the_kernel_of_the_settings(settings):
    record = record_of(Settings(**settings, attention="blocked"))
    assert record["conditions"]["attention"] == "blocked"
    assert record["attention"].startswith("blocked: first step within")


@pytest.mark.parametrize("name", ["flash3", "fast"])
def test_a_service_does_not_start_with_a_kernel_that_its_devices_lack(settings, name):
    with pytest.raises(BadOption, match=f"attention.*{name}"), running(Settings(**settings, attention=name)):
        pass
