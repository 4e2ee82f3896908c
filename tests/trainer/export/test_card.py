from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from medalign.trainer.export.card import Card
from medalign.trainer.recipe.recipe import Recipe


def test_figures_of_others_do_not_stand_in_the_card_of_a_model(
    recipe: Callable[..., Recipe],
) -> None:
    number = {"metric": "bleu", "value": 10.0, "called": "BLEU", "source": "paper"}
    chosen = recipe(**{"paper.numbers": [number], "data.images": "/home/somebody/images"})
    origin = cast(Any, SimpleNamespace(recipe=chosen))
    told = Card(origin=origin, data=None, name="mine", layer=None, checked=()).recipe()
    assert "paper" not in told
    assert told["loss"]["layer"] == chosen.loss.layer
    assert told["data"]["images"] == "images"
