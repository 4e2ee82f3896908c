import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from medalign.trainer.distributed.zero_config import zero_config, zero_stage
from medalign.trainer.recipe.recipe import Recipe, RecipeError

MakeRecipe = Callable[..., Recipe]


def with_file(recipe: MakeRecipe, folder: Path, content: Any) -> Recipe:
    path = folder / "deepspeed.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return recipe(**{"deepspeed.config": str(path)})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_recipe_alone_decides(recipe: MakeRecipe, stage: int) -> None:
    chosen = recipe(**{"deepspeed.stage": stage})
    config = zero_config(chosen, bf16=False, world=4)
    assert config["zero_optimization"] == {"stage": stage}
    assert config["train_batch_size"] == 2 * 2 * 4
    assert config["gradient_clipping"] == chosen.optim.clip
    assert not config["bf16"]["enabled"]
    assert zero_stage(config) == stage


def test_offloading_reaches_deepspeed(recipe: MakeRecipe) -> None:
    some = zero_config(
        recipe(**{"deepspeed.stage": 2, "deepspeed.offload": "optimizer"}), bf16=True, world=1
    )
    assert some["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert "offload_param" not in some["zero_optimization"]
    everything = zero_config(
        recipe(**{"deepspeed.stage": 3, "deepspeed.offload": "all"}), bf16=True, world=1
    )
    assert everything["zero_optimization"]["offload_param"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("stage", "offload", "match"),
    [(0, "optimizer", "needs stage 1, 2 or 3"), (2, "all", "needs stage 3")],
)
def test_offloading_that_cannot_be_is_refused(
    recipe: MakeRecipe, stage: int, offload: str, match: str
) -> None:
    with pytest.raises(ValidationError, match=match):
        recipe(**{"deepspeed.stage": stage, "deepspeed.offload": offload})


def test_a_users_file_keeps_its_own_settings_and_takes_ours(
    recipe: MakeRecipe, tmp_path: Path
) -> None:
    theirs = {
        "zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": 12345},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": 2,  # the same as the recipe's
        "bf16": {"enabled": "auto", "immediate_grad_update": True},
        "wall_clock_breakdown": True,
        "optimizer": "auto",
    }
    chosen = with_file(recipe, tmp_path, theirs)
    config = zero_config(chosen, bf16=True, world=2)
    assert zero_stage(config) == 3
    assert config["zero_optimization"]["stage3_prefetch_bucket_size"] == 12345
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["bf16"] == {"enabled": True, "immediate_grad_update": True}
    assert config["wall_clock_breakdown"]
    assert "optimizer" not in config
    assert "auto" not in json.dumps(config)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "is no JSON"),
        ([], "holds no JSON object"),
        ({"optimizer": {"type": "Adam"}}, "remove 'optimizer': the recipe's optim section"),
        ({"scheduler": {"type": "WarmupLR"}}, "remove 'scheduler'"),
        ({"gradient_clipping": 0.3}, r"gradient_clipping is 0.3, the recipe makes it 1.0"),
        ({"train_batch_size": 7}, r"train_batch_size is 7, the recipe makes it 4"),
        ({"torch_autocast": {"enabled": True}}, "remove 'torch_autocast': student.dtype"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "remove 'data_types'"),
        ({"bf16": {"bf16_master_weights_and_grads": True}}, r"remove bf16.bf16_master"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            r"zero_optimization.offload_param.device is 'nvme'",
        ),
        ({"fp16": {"enabled": True}}, "fp16 is True, the recipe makes it False"),
        ({"bf16": {"enabled": True}}, "bf16 is True, the recipe makes it False"),
    ],
)
def test_a_file_that_says_otherwise_is_refused(
    recipe: MakeRecipe, tmp_path: Path, content: Any, match: str
) -> None:
    with pytest.raises(RecipeError, match=match) as error:
        zero_config(with_file(recipe, tmp_path, content), bf16=False, world=1)
    assert "deepspeed.json" in str(error.value)


def test_a_missing_file_and_an_unknown_stage_are_named(recipe: MakeRecipe, tmp_path: Path) -> None:
    absent = recipe(**{"deepspeed.config": str(tmp_path / "absent.json")})
    with pytest.raises(RecipeError, match=r"absent.json: No such file"):
        zero_config(absent, bf16=False, world=1)
    unknown = with_file(recipe, tmp_path, {"zero_optimization": {"stage": 4}})
    with pytest.raises(RecipeError, match=r"stage must be 0, 1, 2 or 3, got 4"):
        zero_config(unknown, bf16=False, world=1)
    with pytest.raises(ValidationError, match=r"is in the file that deepspeed\.config names"):
        recipe(**{"deepspeed.config": "x.json", "deepspeed.offload": "all", "deepspeed.stage": 3})
