"""Vision towers of open_clip and timm: built from a config, run once for patches and attention.

The only file that imports open_clip and timm. Text towers are never built, and nothing here
reaches for the network: open_clip's own loaders would fetch a hub config for the text tower.
Building the vision tower alone takes names that open_clip may move in any release;
`check_open_clip` names the one that is gone.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from timm.layers import Attention as TimmAttention  # type: ignore[attr-defined]
from timm.models import VisionTransformer as TimmTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.libraries import check_call, look_up
from ..teacher_cache.schema import PatchGrid
from .expert_names import CONFIG_NAME
from .geometry import CLIP_MEAN, CLIP_STD
from .resample import ExpertOutput
from .weights import ExpertError

_BUILDER: Final = "model._build_vision_tower"
_TRANSFORMER: Final = "model.VisionTransformer"
_TIMM_ADAPTER: Final = "timm_model.TimmModel"
_ATTENTION: Final = "transformer.Attention"
_BUILDER_OPTIONS: Final = ("embed_dim", "vision_cfg", "quick_gelu")
_FORWARD_OPTIONS: Final = ("indices", "normalize_intermediates", "intermediates_only", "output_fmt")

Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerConfig:
    """What decides a vision tower's shape and arithmetic, apart from its weights.

    Attributes:
        embed_dim: width of the CLIP embedding, which only the unused projection has.
        vision: open_clip's `vision_cfg`.
        quick_gelu: whether the MLPs use QuickGELU, as OpenAI's and UniMed's do.
        mean: subtracted from pixels in 0..1, per channel.
        std: divides them after that.
    """

    embed_dim: int
    vision: Mapping[str, Any]
    quick_gelu: bool
    mean: Colour = CLIP_MEAN
    std: Colour = CLIP_STD

    @property
    def timm(self) -> bool:
        """Whether the tower is one of timm's, inside open_clip's adapter."""
        return bool(self.vision.get("timm_model_name"))

    def describe(self) -> str:
        """Name the architecture: everything that decides numbers and is not in the weights."""
        name = f"timm:{self.vision.get('timm_model_name')}"
        if not self.timm:
            name = json.dumps({**self.vision, "quick_gelu": self.quick_gelu}, sort_keys=True)
        if (self.mean, self.std) != (CLIP_MEAN, CLIP_STD):
            name += f" mean={self.mean} std={self.std}"
        return name


@dataclass(frozen=True, slots=True)
class QueryKey:
    """How an attention module makes queries and keys from its input.

    Attributes:
        weight: [2D, D], the rows for the queries, then those for the keys.
        bias: [2D] or None.
        heads: H; each head has D / H features.
        query_norm: applied to each head's queries, None for none (timm's `q_norm`).
        key_norm: the same for keys.
    """

    weight: Tensor
    bias: Tensor | None
    heads: int
    query_norm: Callable[[Tensor], Tensor] | None = None
    key_norm: Callable[[Tensor], Tensor] | None = None


def architectures() -> list[str]:
    """Return the names that open_clip knows by itself."""
    names: list[str] = open_clip.list_models()
    return names


def named_config(architecture: str) -> TowerConfig:
    """Return the config of one of `architectures()`."""
    return _parse(open_clip.get_model_config(architecture), {}, architecture)


def read_config(folder: Path) -> TowerConfig:
    """Read `open_clip_config.json` from a folder, as open_clip's hub repositories have it.

    Raises:
        ExpertError: the file is missing, or describes no vision tower.
    """
    path = folder / CONFIG_NAME
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ExpertError(f"{folder}: holds no {CONFIG_NAME}") from error
    except (OSError, ValueError) as error:
        raise ExpertError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ExpertError(f"{path}: expected an object, got {type(content).__name__}")
    return _parse(content.get("model_cfg", content), content.get("preprocess_cfg", {}), str(path))


def _parse(model: Any, preprocess: Any, source: str) -> TowerConfig:
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    if not isinstance(vision, dict) or not isinstance(model.get("embed_dim"), int):
        raise ExpertError(f"{source}: needs an embed_dim and a vision_cfg")
    # A pretrained timm trunk would be downloaded; the checkpoint brings all weights anyway.
    vision = {key: value for key, value in vision.items() if key != "timm_model_pretrained"}
    mean, std = (
        _colour(preprocess, key, default, source)
        for key, default in (("mean", CLIP_MEAN), ("std", CLIP_STD))
    )
    return TowerConfig(
        embed_dim=model["embed_dim"],
        vision=vision,
        quick_gelu=bool(model.get("quick_gelu", False)),
        mean=mean,
        std=std,
    )


def _colour(preprocess: Any, key: str, default: Colour, source: str) -> Colour:
    value = preprocess.get(key, default) if isinstance(preprocess, dict) else default
    try:
        red, green, blue = (float(channel) for channel in value)
    except (TypeError, ValueError) as error:
        raise ExpertError(f"{source}: {key} takes three numbers, got {value!r}") from error
    return red, green, blue


def check_open_clip() -> None:
    """Check that the installed open_clip still has what it does not promise to keep.

    Raises:
        LibraryError: a name is gone, or a function takes other arguments.
    """
    for name in (_TRANSFORMER, _TIMM_ADAPTER, _ATTENTION):
        _internal(name)
    _builder()
    for tower in (_TRANSFORMER, _TIMM_ADAPTER):
        forward = _internal(tower).forward_intermediates
        check_call("open_clip_torch", forward, _FORWARD_OPTIONS, positional=2)


def _internal(name: str) -> Any:
    return look_up(
        "open_clip_torch", f"open_clip.{name.rpartition('.')[0]}", name.rpartition(".")[2]
    )


def _builder() -> Any:
    """Return the function that builds a tower, certain that it can be called as here."""
    builder = _internal(_BUILDER)
    check_call("open_clip_torch", builder, _BUILDER_OPTIONS)
    return builder


class Tower:
    """A vision transformer with a [cls] token, built without weights (on torch's meta device).

    Attributes:
        module: open_clip's visual module; its parameters are set by `load`.
        grid: the tower's own patch grid.
        width: b, features per patch.
        image_size: side of its square input in pixels.
    """

    def __init__(self, config: TowerConfig, name: str) -> None:
        self.module: Any = _build(config, name)
        if isinstance(self.module, _internal(_TRANSFORMER)):
            sides, grid = self.module.image_size, self.module.grid_size
            self.width: int = self.module.transformer.width
            self._blocks: nn.ModuleList = self.module.transformer.resblocks
            self._prefix = 1
        else:
            trunk = _class_token_trunk(self.module, name)
            sides, grid = trunk.patch_embed.img_size, trunk.patch_embed.grid_size
            self.width = trunk.embed_dim
            self._blocks = trunk.blocks
            self._prefix = trunk.num_prefix_tokens
        if sides[0] != sides[1]:
            raise ExpertError(f"{name}: takes images of {sides}; only square towers are supported")
        self.image_size: int = sides[0]
        self.grid = PatchGrid(*grid)
        query_key(self._last_attention())  # refuse now what `run` could not do

    def load(self, weights: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
        """Take copies of `weights`, which must fit, and freeze them."""
        copies = {
            name: tensor.to(device, dtype if tensor.is_floating_point() else None, copy=True)
            for name, tensor in weights.items()
        }
        self.module.load_state_dict(copies, strict=True, assign=True)
        # A buffer that is not in the state dict would stay without numbers.
        unset = [name for name, buffer in self.module.named_buffers() if buffer.is_meta]
        if unset:
            raise ExpertError(f"towers with buffers outside the checkpoint ({unset}) do not load")
        self.module.eval().requires_grad_(False)

    def run(self, pixels: Tensor, *, normalised: bool) -> ExpertOutput:
        """Return patches and [cls] attention of the last block from one forward pass.

        Args:
            pixels: [B, 3, S, S], normalised, in the tower's dtype.
            normalised: apply the tower's final norm to the patches.
        """
        attention = self._last_attention()
        received: list[Tensor] = []
        hook = attention.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
        try:
            output = self.module.forward_intermediates(
                pixels,
                indices=[len(self._blocks) - 1],
                normalize_intermediates=normalised,
                intermediates_only=True,
                output_fmt="NLC",
            )
        finally:
            hook.remove()
        tokens = received[0]
        if not getattr(attention, "batch_first", True):  # open_clip runs some towers as [T, B, D]
            tokens = tokens.transpose(0, 1)
        row = class_attention(query_key(attention), tokens)
        return ExpertOutput(output["image_intermediates"][0], row[:, self._prefix :])

    def _last_attention(self) -> nn.Module:
        try:
            return self._blocks[-1].get_submodule("attn")
        except AttributeError as error:
            raise ExpertError(f"blocks of {type(self.module).__name__} have no attn") from error


def class_attention(projection: QueryKey, tokens: Tensor) -> Tensor:
    """Return how the first token attends to all tokens, as the mean over heads.

    Scores and softmax are float32 whatever the tower computes in: in bfloat16 small
    probabilities would round to zero, and their logarithm is needed later (Eq. 5).

    Args:
        projection: the queries and keys of the block.
        tokens: what the block's attention module receives, [B, T, D], [cls] first.

    Returns:
        Probabilities [B, T], float32; each row sums to 1.
    """
    weights = projection.weight.chunk(2)
    biases = (None, None) if projection.bias is None else projection.bias.chunk(2)
    query = _heads(F.linear(tokens[:, :1], weights[0], biases[0]), projection.heads)
    keys = _heads(F.linear(tokens, weights[1], biases[1]), projection.heads)
    if projection.query_norm is not None:
        query = projection.query_norm(query)
    if projection.key_norm is not None:
        keys = projection.key_norm(keys)
    query = query.float() * query.shape[-1] ** -0.5
    scores = query @ keys.float().transpose(-2, -1)
    return torch.softmax(scores, dim=-1).mean(dim=1).squeeze(1)


def _heads(x: Tensor, heads: int) -> Tensor:
    """Split [B, T, D] into [B, H, T, D / H]."""
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, heads, width // heads).transpose(1, 2)


def query_key(attention: Any) -> QueryKey:
    """Return how a block's attention module makes queries and keys.

    Raises:
        ExpertError: a kind of attention whose [cls] row we do not know how to compute.
    """
    if type(attention) is nn.MultiheadAttention and attention.in_proj_weight is not None:
        bias = attention.in_proj_bias
        return _in_projection(attention.in_proj_weight, bias, attention.num_heads)
    if type(attention) is _internal(_ATTENTION) and attention.logit_scale is None:
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        return _in_projection(weight, bias, attention.num_heads, attention.ln_q, attention.ln_k)
    if type(attention) is TimmAttention:
        weight, bias = attention.qkv.weight, attention.qkv.bias
        return _in_projection(weight, bias, attention.num_heads, attention.q_norm, attention.k_norm)
    kind = f"{type(attention).__module__}.{type(attention).__qualname__}"
    raise ExpertError(f"the [cls] attention of {kind} is not supported")


def _in_projection(
    weight: Tensor,
    bias: Tensor | None,
    heads: int,
    query_norm: nn.Module | None = None,
    key_norm: nn.Module | None = None,
) -> QueryKey:
    """Keep the query and key rows of a [3D, D] projection."""
    rows = weight.shape[0] // 3 * 2
    return QueryKey(
        weight[:rows], None if bias is None else bias[:rows], heads, query_norm, key_norm
    )


def _build(config: TowerConfig, name: str) -> Any:
    timm_name = str(config.vision.get("timm_model_name") or "")
    if ":" in timm_name:
        raise ExpertError(
            f"{name}: timm tower {timm_name!r} names a hub; nothing is downloaded here"
        )
    builder = _builder()
    try:
        vision = open_clip.CLIPVisionCfg(**config.vision)
        if isinstance(vision.layers, list | tuple):
            raise ExpertError(f"{name}: a ResNet has no [cls] token; use a ViT")
        with torch.device("meta"):  # no memory, no time, and no numbers drawn at random
            return builder(
                embed_dim=config.embed_dim, vision_cfg=vision, quick_gelu=config.quick_gelu
            )
    except (TypeError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise ExpertError(f"{name}: open_clip cannot build this vision_cfg ({error})") from error


def _class_token_trunk(module: Any, name: str) -> Any:
    trunk = module.trunk if isinstance(module, _internal(_TIMM_ADAPTER)) else module
    if not (isinstance(trunk, TimmTransformer) and trunk.has_class_token):
        raise ExpertError(
            f"{name}: of timm's towers only a VisionTransformer with a [cls] token has the "
            f"attention we learn from, not {type(trunk).__name__}"
        )
    if tuple(trunk.patch_embed.img_size) != tuple(module.image_size):
        raise ExpertError(
            f"{name}: vision_cfg says image_size {module.image_size}, "
            f"the timm tower takes {trunk.patch_embed.img_size}"
        )
    return trunk
