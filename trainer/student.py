"""The student: a Hugging Face model from a local folder, and its adapter."""

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from .recipe.sections import LoraSection
from .students.families import FAMILIES, family_of
from .students.probe import attach
from .students.spec import OWN_CODE, StudentError, first_line, read_config

Quantization = Literal["none", "nf4"]


def load_base(
    path: Path,
    dtype: torch.dtype,
    attention: str = "sdpa",
    device: torch.device = torch.device("cpu"),  # noqa: B008 - a value, not a call that acts
    *,
    sharded: bool = False,
    quantize: Quantization = "none",
) -> Any:
    """Load the weights of a student from a local folder, in evaluation mode.

    On a GPU they go there tensor by tensor: no rank holds the whole model in host memory.

    Args:
        path: a local Hugging Face folder.
        dtype: of the weights.
        attention: name of the attention implementation.
        device: where they go.
        sharded: inside `sharded_loading`; each rank keeps its part.
        quantize: `nf4` keeps the language model's linear layers in 4 bits.

    Raises:
        StudentError: the folder is no student, tensors are missing from its weights, or the
            kernel cannot compute what the student was trained with.
    """
    family = FAMILIES[read_config(path).model_type]
    if attention not in family.attentions:
        raise StudentError(
            f"{path}: a {family.model_type} student runs with student.attention "
            f"{' or '.join(family.attentions)}, not {attention}"
        )
    try:
        load: Any = family.model_class.from_pretrained
        model, report = load(
            path,
            dtype=dtype,
            attn_implementation=attention,
            **OWN_CODE,
            output_loading_info=True,
            device_map=None if sharded or device.type == "cpu" else {"": device},
            quantization_config=None if quantize == "none" else _nf4(dtype),
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise StudentError(f"{path}: cannot load the student: {first_line(error)}") from error
    for kind in ("missing_keys", "mismatched_keys"):
        if keys := sorted(str(key) for key in report.get(kind, ())):
            raise StudentError(
                f"{path}: {kind.replace('_', ' ')}: {', '.join(keys[:5])} ({len(keys)} in all); "
                "the folder does not hold this model's weights"
            )
    return model.eval()


def _nf4(dtype: torch.dtype) -> Any:
    """4-bit normal floats as in QLoRA; what sees pixels and what makes logits stays as it is."""
    if find_spec("bitsandbytes") is None:
        raise StudentError(
            "student.quantize: nf4 needs bitsandbytes: pip install 'medalign[qlora]'"
        )
    settings: Any = BitsAndBytesConfig
    return settings(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[r"(?!.*language_model\.).*"],  # all but the language model
    )


def add_adapter(
    base: Any, layer: int, lora: LoraSection, *, rotation: bool, projector: bool
) -> Any:
    """Freeze the base and give it LoRA, W and a trainable projector, carried by one PEFT adapter.

    Args:
        base: from `load_base`.
        layer: l, counted from 0.
        lora: rank, alpha, dropout.
        rotation: train W (Eq. 1) at the input of layer l.
        projector: train the multimodal projector.

    Raises:
        StudentError: the student has no layer l.
    """
    layers = base.config.text_config.num_hidden_layers
    if not 0 <= layer < layers:
        raise StudentError(f"loss.layer is {layer}, the student has layers 0 to {layers - 1}")
    attach(base, layer, rotation=rotation)
    parts = {"visual_rotation": rotation, family_of(base).projector_name: projector}
    carried = [name for name, trained in parts.items() if trained]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=cast(int, lora.alpha),
        lora_dropout=lora.dropout,
        target_modules=_linear_layers(base),
        modules_to_save=carried or None,
    )
    # In the base model's own type: ZeRO 3 cannot mix the float32 that PEFT would add to bfloat16.
    return get_peft_model(base, config, autocast_adapter_dtype=False)


def load_student(base: Any, adapter: Path, *, probe: bool = False) -> Any:
    """Load an adapter onto its base model: LoRA, projector and the rotation W.

    Bare `PeftModel.from_pretrained` would drop W without a word, because the base model has no
    place for it until it is attached.

    Args:
        base: from `load_base`.
        adapter: folder with `adapter_config.json` and `adapter_model.safetensors`.
        probe: also attach the attention probe at the layer that was trained.

    Raises:
        StudentError: the folder is no adapter, or does not fit this base model.
    """
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file() or not (adapter / "adapter_config.json").is_file():
        raise StudentError(f"{adapter} is no adapter: adapter_config.json and weights expected")
    try:
        with safe_open(weights, "pt") as file:
            keys = list(file.keys())
    except SafetensorError as error:
        raise StudentError(f"{weights} is damaged: {first_line(error)}") from error
    rotated = {int(m[1]) for key in keys if (m := re.search(r"layers\.(\d+)\.visual_rot", key))}
    layer = next(iter(rotated), None)
    if layer is None and probe:
        layer = read_identity(adapter)["recipe"]["loss"]["layer"]
    if layer is not None:
        layers = base.config.text_config.num_hidden_layers
        if layer >= layers:
            raise StudentError(f"{adapter} rotates layer {layer}, the student has {layers} layers")
        attach(base, layer, rotation=bool(rotated), probe=probe)
    try:
        return PeftModel.from_pretrained(base, str(adapter), local_files_only=True).eval()
    except (RuntimeError, ValueError) as error:
        raise StudentError(f"{adapter} does not fit the student: {first_line(error)}") from error


def checkpoint_activations(model: Any, *, reentrant: bool = False) -> None:
    """Recompute activations in the backward pass.

    Args:
        model: the model itself, not its PEFT wrapper.
        reentrant: the older way of torch; it would cut the probe's gradient, and is refused by
            the objective.
    """
    # transformers 5.23 renamed the method and deprecated the old name.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})


def read_identity(adapter: Path) -> dict[str, Any]:
    """Read `medalign.json`: recipe and cache that an adapter was trained with.

    Raises:
        StudentError: the file is missing or no JSON.
    """
    try:
        identity: dict[str, Any] = json.loads((adapter / "medalign.json").read_text())
    except (OSError, ValueError) as error:
        raise StudentError(f"{adapter}: cannot read medalign.json: {error}") from error
    return identity


def llava_of(model: Any) -> Any:
    """The Hugging Face model inside a PEFT model, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _linear_layers(base: Any) -> str:
    """Regular expression of every linear layer of the language model, and of nothing else."""
    path = family_of(base).language
    leaves = {
        name.rpartition(".")[2]
        for name, module in base.get_submodule(path).named_modules()
        if isinstance(module, nn.Linear)
    }
    return rf".*{re.escape(path)}\.layers\.\d+\..*\.({'|'.join(sorted(leaves))})"


def save_adapter(
    student: Any, trained: Mapping[str, Tensor], folder: Path, about: dict[str, Any]
) -> None:
    """Write a standard PEFT folder: LoRA, rotation and projector, and what they belong to.

    Args:
        student: PEFT model.
        trained: its trained parameters by name, with or without the prefix of a wrapper module.
        folder: made if need be.
        about: recipe and cache identity, for `medalign.json`.
    """
    known = {name for name, _ in student.named_parameters()}
    state = {}
    for name, parameter in trained.items():
        own = name if name in known else name.removeprefix("student.")
        state[own] = parameter.detach().cpu().clone()
    # "auto" would ask the hub whether the base model has other embeddings.
    student.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    (folder / "medalign.json").write_text(json.dumps(about, indent=2) + "\n")
    (folder / "README.md").write_text(_ADAPTER_README)


_ADAPTER_README = """\
# MedAlign adapter

LoRA, multimodal projector and the rotation W of the visual tokens, trained with medalign.
`medalign.json` holds the recipe and the identity of the teacher cache.

Load it with medalign; plain `PeftModel.from_pretrained` drops W without a word:

    from pathlib import Path
    import torch
    from medalign.trainer.student import load_base, load_student

    base = load_base(Path("STUDENT"), torch.bfloat16)
    student = load_student(base, Path("ADAPTER"))
"""


def unloaded_model(path: Path) -> Any:
    """Build the model of a student's folder on the meta device; a 7B takes two seconds.

    Raises:
        StudentError: the folder is no student.
    """
    config = read_config(path)
    with torch.device("meta"):
        return FAMILIES[config.model_type].model_class(config)
