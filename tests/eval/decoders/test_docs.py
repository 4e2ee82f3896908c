"""The table of settings in docs/decoders.md says what the code does."""

import re
from pathlib import Path

from medalign.eval.decoders import SPECS, make_spec
from medalign.eval.decoders.settings import Sampled, settings_of

DOCS = Path(__file__).parents[3] / "docs" / "decoders.md"
PRESETS = (None, "paper", "medalign-llava-med", "medalign-huatuo")


def cells() -> dict[tuple[str, str], list[str]]:
    """(decoder, setting) -> default, paper, LLaVA-Med, Huatuo as the table has them."""
    table = DOCS.read_text(encoding="utf-8").split("| decoder | setting |")[1].split("\n\n")[0]
    found: dict[tuple[str, str], list[str]] = {}
    decoder = ""
    for line in table.splitlines()[2:]:
        name, settings, *values = (cell.strip() for cell in line.strip("|").split(" | "))
        decoder = name.strip("` ") or decoder
        for place, setting in enumerate(re.findall(r"`(\w+)`", settings)):
            several = settings.count("`") > 2
            found[decoder, setting] = [
                value.split(", ")[place] if several else value for value in values[:4]
            ]
    return found


def shown(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return {"0,2,4,6,8,10,12,14": "0,2,..,14", "True": "true", "False": "false"}.get(text, text)


def test_the_table_holds_every_setting_with_its_presets() -> None:
    table = cells()
    common = {"max_new_tokens", "variant"}
    for name, kind in SPECS.items():
        drawn = {setting for setting, _ in settings_of(Sampled)}
        own = {setting for setting, _ in settings_of(kind)} - common - drawn
        assert own <= {setting for decoder, setting in table if decoder == name}, name
    for (decoder, setting), values in table.items():
        wanted = [shown(make_spec(decoder, preset).settings()[setting]) for preset in PRESETS]
        assert values == wanted, (decoder, setting)
