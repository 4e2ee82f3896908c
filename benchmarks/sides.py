"""The sides of `step.py`: one student, one batch, and the ways in which a step is done with them.

Nothing here is timed; `step.py` does that. Every side is a function that makes a `Side`.
"""

import copy
import importlib.util
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from medalign.pipeline.experts import Expert
from medalign.pipeline.manifest import Record, Turn
from medalign.pipeline.resample import to_grid
from medalign.pipeline.tower import Tower, named_config
from medalign.teacher_cache.reader import TeacherRow
from medalign.teacher_cache.schema import ExpertCard
from medalign.trainer.data.batch import Batch, Sample, collate
from medalign.trainer.data.teacher import Patches
from medalign.trainer.distributed.engine import Engine
from medalign.trainer.distributed.ranks import Ranks
from medalign.trainer.distributed.zero_config import zero_config
from medalign.trainer.losses import attention_alignment, spatial_alignment
from medalign.trainer.objective import Objective, Share
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.student import add_adapter, checkpoint_activations, llava_of, load_base
from medalign.trainer.students.spec import StudentSpec, read_config, read_student
from medalign.trainer.students.tiny import DEMO_TEXTS, TinyStudent, make_student

QUESTION = "Which organ is shown, and is there a fracture of the left rib or an effusion? " * 2
ANSWER = "The lungs are clear, the heart size is within normal limits, no fracture is seen. " * 2


@dataclass(frozen=True, kw_only=True)
class Size:
    """A student to compare on, and what goes with it.

    Attributes:
        rank: of LoRA.
        expert: open_clip architecture of the expert that runs online.
        layers, width: of the language model.
    """

    rank: int
    expert: str
    layers: int
    width: int


SIZES = {
    "toy": Size(rank=32, expert="ViT-S-16", layers=8, width=512),
    "7b": Size(rank=64, expert="ViT-L-14-336", layers=32, width=4096),
}


@dataclass(frozen=True)
class Side:
    """One way of doing a step.

    Attributes:
        steps: does one forward, backward and update each time that it is asked for another.
        expert_bytes: weights of an expert that runs in the same process.
    """

    steps: Iterator[None]
    expert_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all sides share.

    Attributes:
        size: of the student.
        spec: of the folder that lends tokenizer, template and image processor.
        samples: conversations of a batch.
        checkpointing: recompute activations in the backward pass.
        device: of the student.
    """

    size: Size
    spec: StudentSpec
    samples: int
    checkpointing: bool
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the student: bf16 on a GPU, fp32 on a CPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def layer(self) -> int:
        """The layer l that is looked into."""
        return self.size.layers // 2

    def recipe(self, **loss: Any) -> Recipe:
        """A recipe of one micro-step a step; bf16 needs ZeRO 1 or above."""
        on_gpu = self.device.type == "cuda"
        return Recipe.model_validate(
            {
                "student": {"dtype": "bf16" if on_gpu else "fp32"},
                "loss": {"layer": self.layer, **loss},
                "lora": {"rank": self.size.rank, "dropout": 0.0},
                "data": {"batch_size": self.samples},
                "deepspeed": {"stage": 1 if on_gpu else 0},
                "run": {"steps": 1000},
            }
        )

    def base(self, attention: str = "sdpa") -> Any:
        """The random student, made where it runs; a 7B model is never on disk."""
        if self.size is SIZES["toy"]:
            model = load_base(self.spec.path, self.dtype).to(self.device)
            model.set_attn_implementation(attention)  # `load_base` refuses eager
        else:
            model = self._made(self.device, attention)
        if self.checkpointing:
            checkpoint_activations(model)
        return model

    def weights_bytes(self) -> int:
        """Memory of the student's weights alone."""
        model = self._made(torch.device("meta"))
        return int(sum(p.numel() for p in model.parameters())) * self.dtype.itemsize

    def _made(self, device: torch.device, attention: str = "sdpa") -> Any:
        toy = self.size is SIZES["toy"]
        config = read_config(self.spec.path) if toy else large_config(self.spec, self.size)
        torch.manual_seed(0)
        make: Any = LlavaForConditionalGeneration._from_config
        with device:
            return make(config, dtype=self.dtype, attn_implementation=attention)

    def plain_student(self) -> Any:
        """LoRA on every linear layer of the language model and a trained projector; no hooks."""
        linear = r".*language_model\.layers\.\d+\..*\.(q|k|v|o|gate|up|down)_proj"
        config = LoraConfig(
            r=self.size.rank,
            lora_alpha=16,
            lora_dropout=0.0,
            target_modules=linear,
            modules_to_save=["multi_modal_projector"],
        )
        return get_peft_model(self.base(), config).train()

    def student(self, recipe: Recipe, attention: str = "sdpa") -> Any:
        """The student as `medalign train` makes it."""
        model = add_adapter(
            self.base(attention), self.layer, recipe.lora, rotation=True, projector=True
        )
        return model.to(self.device).train()

    def batch(self, *, teacher: bool) -> Batch:
        """The same random conversations for every side."""
        rng = np.random.default_rng(0)
        return collate([self._sample(k, rng, teacher) for k in range(self.samples)], 0)

    def _sample(self, k: int, rng: np.random.Generator, teacher: bool) -> Sample:
        side, n = self.spec.image_size, self.spec.grid.size
        turns = (Turn("human", f"<image>\n{QUESTION}"), Turn("gpt", ANSWER))
        record = Record(
            id=str(k), images=("x",), conversations=turns, answer_type=None, fields={}, line=k
        )
        row = TeacherRow(
            features=rng.standard_normal((n, 1024)).astype(np.float16),
            attention=(rng.random(n) / n).astype(np.float32),
            valid=np.ones(n, bool),
            source_size=(side, side),
        )
        pixels = rng.standard_normal((3, side, side)).astype(np.float32)
        encoded = self.spec.encoder.training(record, 4096)
        return Sample(str(k), encoded, (pixels,), (row if teacher else None,))


def small_student(folder: Path, size: Size) -> StudentSpec:
    """Write the toy student; for a large one it lends tokenizer and processor alone."""
    toy = size is SIZES["toy"]
    width, layers = (size.width, size.layers) if toy else (64, 2)
    sizes = TinyStudent(width=width, layers=layers, heads=8, key_heads=4)
    make_student(folder, [*DEMO_TEXTS, QUESTION, ANSWER], sizes)
    return read_student(folder)


def large_config(spec: StudentSpec, size: Size) -> Any:
    """The shape of LLaVA-1.5 on Mistral-7B, at 7B."""
    heads = size.width // 128
    text = MistralConfig(
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
        intermediate_size=size.width * 7 // 2,
        vocab_size=32064,
        sliding_window=None,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=spec.image_size,
        patch_size=spec.image_size // spec.grid.rows,
    )
    llava: Any = LlavaConfig
    return llava(
        vision_config=vision,
        text_config=text,
        image_token_index=spec.encoder.image_token_id,
        image_seq_length=spec.grid.size,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def engine_steps(
    bench: Bench, objective: nn.Module, recipe: Recipe, batches: Callable[[], Batch]
) -> Iterator[None]:
    engine = Engine(
        objective,
        recipe.optim,
        Ranks(),
        zero_config(recipe, bf16=bench.dtype == torch.bfloat16, world=1),
    )
    while True:
        batch = batches()
        share = Share.of(batch.answer_tokens, batch.teacher_images, 1)
        loss, _ = engine(batch, share)
        engine.backward(loss)
        engine.step()
        yield


def plain(bench: Bench) -> Side:
    """LoRA alone in our loop: alpha = beta = 0, no teacher, no hooks."""
    recipe = bench.recipe(alpha=0.0, beta=0.0, rotation=False)
    batch = bench.batch(teacher=False)
    objective = Objective(bench.plain_student(), recipe.loss)
    return Side(engine_steps(bench, objective, recipe, lambda: batch.to(bench.device, bench.dtype)))


def ours(bench: Bench) -> Side:
    """Rotation and both losses, teacher rows from the cache, the probe beside SDPA."""
    recipe = bench.recipe()
    batch = bench.batch(teacher=True)
    objective = Objective(bench.student(recipe), recipe.loss)
    return Side(engine_steps(bench, objective, recipe, lambda: batch.to(bench.device, bench.dtype)))


def online(bench: Bench) -> Side:
    """Ours, but the expert runs in the same process for every step."""
    recipe = bench.recipe()
    expert = random_expert(bench.size.expert, bench.device, bench.dtype)
    side = expert.card.image_size
    rng = np.random.default_rng(1)
    pixels = torch.from_numpy(rng.standard_normal((bench.samples, 3, side, side), np.float32))
    batch = bench.batch(teacher=True)

    def taught() -> Batch:
        here = batch.to(bench.device, bench.dtype)
        assert here.teacher is not None
        source, target = expert.card.grid, bench.spec.grid
        said = expert.encode(pixels.to(bench.device, non_blocking=True))
        before = expert.card.normalise_before_interpolation
        patches, attention = to_grid(said, source, target, normalise_before=before)
        spatial = Patches(patches.half())
        return replace(here, teacher=replace(here.teacher, spatial=spatial, attention=attention))

    objective = Objective(bench.student(recipe), recipe.loss)
    weights = sum(p.numel() * p.element_size() for p in expert._tower.module.parameters())
    return Side(engine_steps(bench, objective, recipe, taught), weights)


def random_expert(architecture: str, device: torch.device, dtype: torch.dtype) -> Expert:
    """An expert of medalign's pipeline with random weights, made where it runs."""
    config = named_config(architecture)
    tower = Tower(config, architecture)
    weights = {
        name: 0.02 * torch.randn(tensor.shape, device=device)
        for name, tensor in tower.module.state_dict().items()
    }
    tower.load(weights, device, dtype)
    card = ExpertCard(
        name=architecture,
        architecture=architecture,
        weights_sha256="0" * 64,
        features="last",
        grid=tower.grid,
        width=tower.width,
        image_size=tower.image_size,
        normalise_before_interpolation=True,
        licence="none",
    )
    return Expert(card, tower, config)


class _Eager(nn.Module):
    """The authors' way: every layer keeps its whole attention map, one of them is used."""

    def __init__(self, student: Any, layer: int) -> None:
        super().__init__()
        self.student = student
        self.layer = layer
        attention = llava_of(student).model.language_model.layers[layer].self_attn
        attention.config = copy.copy(attention.config)
        attention.config._attn_implementation = "eager"  # no probe

    def forward(self, batch: Batch, share: Share) -> tuple[Tensor, Tensor]:
        llava = llava_of(self.student)
        tap = batch.tap(llava.config.image_token_id)
        out = llava.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            pixel_values=batch.pixel_values,
            use_cache=False,
            output_attentions=True,
            tap=tap,
        )
        logits = llava.lm_head(out.last_hidden_state).float().flatten(0, 1)
        lm = nn.functional.cross_entropy(logits[batch.predicts], batch.targets)
        teacher = batch.teacher
        assert teacher is not None
        assert tap.states is not None
        assert isinstance(teacher.spatial, Patches)
        maps, look = out.attentions[self.layer].mean(1), teacher.look
        seen = torch.stack(
            [maps[k, look.rows[k]][:, look.cols[k]].float().mean(0) for k in range(len(maps))]
        )
        vis = spatial_alignment(tap.states, teacher.spatial.features)
        loss = lm + vis + 0.001 * attention_alignment(seen, teacher.attention)
        return loss * share.token * batch.answer_tokens, torch.zeros(3)


def eager(bench: Bench) -> Side:
    """Both losses from eager attention with `output_attentions` in every layer."""
    recipe = bench.recipe()
    batch = bench.batch(teacher=True)
    objective = _Eager(bench.student(recipe, "eager"), bench.layer)
    return Side(engine_steps(bench, objective, recipe, lambda: batch.to(bench.device, bench.dtype)))


def trainer(bench: Bench) -> Side:
    """The same LoRA SFT step by transformers' Trainer and PEFT."""
    options: Any = TrainingArguments
    arguments = options(**_arguments(bench))
    arguments._n_gpu = min(1, arguments.n_gpu)
    model = bench.plain_student()
    return Side(
        _trainer_steps(
            lambda callback: Trainer(
                model=model,
                args=arguments,
                train_dataset=_Repeated(bench),
                data_collator=_same,
                callbacks=[callback],
            )
        )
    )


def trl(bench: Bench) -> Side:
    """The same LoRA SFT step by TRL's SFTTrainer."""
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        **_arguments(bench), max_length=None, dataset_kwargs={"skip_prepare_dataset": True}
    )
    model = bench.plain_student()
    inputs = _Repeated(bench)[0]
    # By `images` it tells a vision dataset; a fingerprint given need not be computed.
    table = InMemoryTable.from_pydict({"images": [[]] * 1000, "messages": [[]] * 1000})
    rows = Dataset(table, fingerprint="none")
    return Side(
        _trainer_steps(
            lambda callback: SFTTrainer(
                model=model,
                args=arguments,
                train_dataset=rows,
                data_collator=lambda _: dict(inputs),
                processing_class=bench.spec.processor,
                callbacks=[callback],
            )
        )
    )


def _arguments(bench: Bench) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(prefix="medalign-bench-"),
        "per_device_train_batch_size": 1,  # one ready batch
        "max_steps": 1000,
        "learning_rate": 2e-4,
        "bf16": bench.device.type == "cuda",
        "use_cpu": bench.device.type == "cpu",
        "gradient_checkpointing": bench.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }


class _Repeated(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The one batch again and again, as a transformers model takes it."""

    def __init__(self, bench: Bench) -> None:
        batch = bench.batch(teacher=False)
        labels = torch.full_like(batch.input_ids, -100).flatten()
        labels[batch.predicts + 1] = batch.targets
        assert batch.pixel_values is not None
        self.inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "labels": labels.view_as(batch.input_ids),
            "pixel_values": batch.pixel_values.to(bench.dtype),
        }

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, _: int) -> dict[str, Tensor]:
        return dict(self.inputs)


def _same(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return items[0]


def _trainer_steps(make: Callable[[Any], Any]) -> Iterator[None]:
    """Let a Trainer, which calls and is not called, do one step at a time.

    It runs in a thread and waits after each step until another is asked for.
    """
    go, done = threading.Semaphore(0), threading.Semaphore(0)
    failed: list[BaseException] = []
    enough = threading.Event()

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            go.acquire()
            if enough.is_set():
                raise _EnoughError

        def on_step_end(self, *_: Any, **__: Any) -> None:
            done.release()

    def train() -> None:
        try:
            make(Turns()).train()
        except BaseException as error:
            failed.append(error)
            done.release()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    try:
        while True:
            go.release()
            done.acquire()
            if failed:
                raise failed[0]
            yield
    finally:  # or it would keep its model in memory
        enough.set()
        go.release()
        thread.join()


class _EnoughError(Exception):
    """No more steps are wanted."""


SIDES: dict[str, Callable[[Bench], Side]] = {
    "plain": plain,
    "ours": ours,
    "online": online,
    "eager": eager,
    "trainer": trainer,
}
if importlib.util.find_spec("trl") is not None:
    SIDES["trl"] = trl
