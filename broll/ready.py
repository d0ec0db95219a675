"""A model made ready for one clip: loaded as its plan says, with the clip's LoRAs.

    check -> plan.local -> load

So do the command and the call. A renderer, which keeps its model for the next clip, goes its own way.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from broll import features, group, loras, wiring
from broll import plan as plans
from broll.catalog import Installed
from broll.engine.config import ModelConfig
from broll.settings import Settings
from broll.spec import VideoSpec

if TYPE_CHECKING:
    from broll.engine.load import Parts
    from broll.engine.mesh import Team


def check(spec: VideoSpec, config: ModelConfig, settings: Settings) -> list[str]:
    """Refuse what the settings ask for and this machine cannot do; else what there is to say of them."""
    wiring.check_attention(settings.attention, config)
    wiring.prepare_compiler(settings)
    told = group.check(settings, spec, config)
    return [told] if told else []


def load(
    model: Installed, plan: plans.Plan, config: ModelConfig, settings: Settings, *, merging: bool,
    places: Mapping[str, Path] | None = None, team: "Team | None" = None,
) -> tuple["Parts", list[str]]:  # fmt: skip
    """The model for the plan's clip, and what of its LoRAs and of the settings has no effect. `places`: where LoRAs
    are, by digest.
    """
    spec, prompts = plan.spec, plans.prompts(plan.spec)
    loading = settings.loading(
        streamed=plan.switched_on(plans.STREAMING), text_first=plan.switched_on(plans.TEXT_FIRST)
    )
    with group.alone(team), group.known():  # stopped here, the others may wait for ever
        if merging:
            parts, unused = loras.merged(model, config, spec, settings, loading, places, prompts, team)
        else:
            kept = features.shelf(settings)
            whole = wiring.load(model, config, loading, prompts=prompts, kept=kept, team=team)
            parts, unused = loras.on(whole, spec, settings, places)
    return wiring.tiled(parts, plan.tiles), unused + wiring.unmet(parts, settings)
