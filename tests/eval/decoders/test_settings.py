"""Settings: defaults, presets, single values, and what is said of wrong ones."""

import json
from typing import Any

import pytest

from medalign.eval.commands.generate import DecoderChoice, PresetChoice
from medalign.eval.decoders import SPECS, DecodingError, make_spec
from medalign.eval.decoders.presets import PRESETS, read_assignments
from medalign.eval.decoders.settings import Avisc, M3id, Nucleus, settings_of


def test_the_command_offers_every_decoder_and_preset() -> None:
    assert [choice.value for choice in DecoderChoice] == list(SPECS)
    assert [choice.value for choice in PresetChoice] == list(PRESETS)


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("name", list(SPECS))
def test_every_preset_of_every_decoder_is_valid(name: str, preset: str | None) -> None:
    spec = make_spec(name, preset)
    assert spec.name == name
    assert json.loads(json.dumps(spec.settings())) == spec.settings()
    assert set(spec.settings()) == {setting for setting, _ in settings_of(SPECS[name])}


@pytest.mark.parametrize(
    ("preset", "name", "wanted"),
    [
        ("paper", "avisc", {"alpha": 2.5, "lambda": 1.0, "gamma": 0.5, "beta": 0.1}),
        ("paper", "damro", {"alpha": 2.0, "top_tokens": 10, "mode": "drop", "layer": -2}),
        ("paper", "dola", {"repetition_penalty": 1.2, "relative_top": 0.1, "layers": "low"}),
        ("paper", "opera", {"scale": 50.0, "threshold": 15, "candidates": 5, "beams": 5}),
        ("paper", "m3id", {"lambda": 0.02, "gate": 0.3, "variant": "published"}),
        ("paper", "pai", {"alpha": 0.2, "gamma": 1.1, "first_layer": 2, "temperature": 0.0}),
        ("medalign-llava-med", "opera", {"scale": 25.0, "threshold": 25, "max_new_tokens": 128}),
        ("medalign-llava-med", "vcd", {"top_k": 50, "alpha": 1.0, "max_new_tokens": 1024}),
        ("medalign-llava-med", "damro", {"alpha": 0.5, "mode": "zero", "layer": -1}),
        ("medalign-llava-med", "avisc", {"alpha": 1.0}),
        ("medalign-llava-med", "dola", {"layers": "0,2,4,6,8,10,12,14"}),
        ("medalign-llava-med", "m3id", {"temperature": 1.0}),
        ("medalign-huatuo", "m3id", {"temperature": 0.7}),
        ("medalign-huatuo", "opera", {"scale": 50.0, "threshold": 15, "max_new_tokens": 128}),
        ("medalign-huatuo", "greedy", {"max_new_tokens": 128}),
        ("medalign-huatuo", "nucleus", {"top_p": 0.9, "top_k": 0, "max_new_tokens": 1024}),
        (None, "damro", {"alpha": 0.5, "top_tokens": 10, "mode": "zero", "variant": "published"}),
        (None, "vcd", {"alpha": 1.0, "beta": 0.1, "noise_step": 500, "top_k": 0}),
    ],
)
def test_presets_hold_what_was_run(preset: str | None, name: str, wanted: dict[str, Any]) -> None:
    found = make_spec(name, preset).settings()
    assert {key: found[key] for key in wanted} == wanted


def test_single_values_win_over_a_preset() -> None:
    spec = make_spec("avisc", "paper", {"alpha": "0.7", "lambda": "-inf", "max_new_tokens": 9})
    assert spec == Avisc(alpha=0.7, lambda_=float("-inf"), gamma=0.5, max_new_tokens=9)
    assert spec.settings()["lambda"] == "-inf"
    assert make_spec("avisc", None, {"lambda": spec.settings()["lambda"]}) == Avisc(
        lambda_=float("-inf")
    )


def test_the_seed_belongs_to_decoders_that_draw_tokens_or_noise() -> None:
    assert make_spec("greedy").identity(3) == {"decoder": "greedy", "max_new_tokens": 128}
    assert make_spec("nucleus").identity(3)["seed"] == 3
    assert "seed" not in make_spec("pai").identity(3)
    assert make_spec("pai", None, {"temperature": "1"}).identity(3)["seed"] == 3
    still = {"temperature": "0"}
    for name, values in (("vcd", {}), ("avisc", {"scheme": "noise"})):
        assert make_spec(name, None, {**still, **values}).identity(3)["seed"] == 3
    for name, values in (("vcd", {"variant": "reference"}), ("avisc", {}), ("damro", {})):
        assert "seed" not in make_spec(name, None, {**still, **values}).identity(3)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("vcd", {"aplha": "1"}, "vcd has no setting 'aplha'; its settings are max_new_tokens, "),
        ("greedy", {"beams": 3}, "greedy has no setting 'beams'; its settings are max_new_tokens"),
        ("avisc", {"lambda_": "1"}, "avisc has no setting 'lambda_'.*lambda"),
        ("vcd", {"alpha": "much"}, "vcd: alpha takes a number, got 'much'"),
        ("vcd", {"alpha": "nan"}, "vcd: alpha takes numbers from 0, got nan"),
        ("avisc", {"lambda": "nan"}, "avisc: lambda takes numbers, got nan"),
        ("vcd", {"alpha": "inf"}, "vcd: alpha takes finite numbers, got inf"),
        ("nucleus", {"temperature": "inf"}, "nucleus: temperature takes finite numbers, got inf"),
        ("nucleus", {"temperature": "1e-45"}, "temperature takes 0 or numbers from 1e-06, got"),
        ("m3id", {"lambda": "inf"}, "m3id: lambda takes finite numbers, got inf"),
        ("vcd", {"beta": "1.5"}, "vcd: beta takes numbers from 0 to 1, got 1.5"),
        ("vcd", {"noise_step": "1000"}, "vcd: noise_step takes numbers from 0 to 999, got 1000"),
        ("vcd", {"noise_step": "1.5"}, "vcd: noise_step takes a whole number, got '1.5'"),
        ("vcd", {"variant": "released"}, "vcd: variant takes published or reference, got 'rel"),
        ("damro", {"split_heads": "yes"}, "damro: split_heads takes true or false, got 'yes'"),
        ("damro", {"layer": "0"}, "damro: layer takes numbers up to -1, got 0"),
        ("nucleus", {"temperature": -1.0}, "nucleus: temperature takes numbers from 0, got -1"),
        ("nucleus", {"top_p": 0.0}, "nucleus: top_p takes numbers above 0 to 1, got 0.0"),
        ("beam", {"beams": 0}, "beam: beams takes numbers from 1, got 0"),
        ("greedy", {"max_new_tokens": 0}, "greedy: max_new_tokens takes numbers from 1, got 0"),
        ("greedy", {"max_new_tokens": True}, "greedy: max_new_tokens takes a whole number"),
        ("icd", {}, "decoder is 'icd', known are greedy, beam, nucleus, vcd, dola, opera, avisc"),
    ],
)
def test_a_wrong_setting_is_named(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(DecodingError, match=message):
        make_spec(name, None, values)


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(DecodingError, match="preset is 'mine', known are paper, medalign-llava"):
        make_spec("vcd", "mine")


def test_texts_are_read_as_the_settings_type() -> None:
    spec = make_spec("damro", None, {"split_heads": "False", "top_tokens": "4", "alpha": "1"})
    assert spec.settings()["split_heads"] is False
    assert spec.settings()["top_tokens"] == 4
    assert M3id(lambda_=1).settings()["lambda"] == 1
    assert make_spec("nucleus", None, {"top_k": "3"}) == Nucleus(top_k=3)


def test_assignments_are_read_as_key_and_value() -> None:
    assert read_assignments(["alpha=1", " layers = 0,2 "]) == {"alpha": "1", "layers": "0,2"}
    for texts, message in (
        (["alpha"], "--set takes key=value, got 'alpha'"),
        (["=1"], "--set takes key=value, got '=1'"),
        (["a=1", "a=2"], "--set a is given twice"),
    ):
        with pytest.raises(DecodingError, match=message):
            read_assignments(texts)
