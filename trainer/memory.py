"""Memory of a training step by formula: pure functions of counts and shapes, nothing is loaded.

Sources:
    [ZeRO] Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
        Models", arXiv 1910.02054, section 3 and figure 1: bytes of weights, gradients and Adam
        under mixed precision, and what each stage divides by the number of ranks.
    [Act] Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models",
        arXiv 2205.05198, section 4: count what autograd keeps of one layer, tensor by tensor;
        recomputing leaves a layer's input. Their layer is a GPT with trained weights; here the
        same count is made for a Llama-like layer with frozen weights under LoRA.
    [Flash] Dao et al., "FlashAttention", arXiv 2205.14135, section 3: the kernel keeps q, k, v,
        its output and one number per row, never the T x T map.
    [QLoRA] Dettmers et al., arXiv 2305.14314, section 3: 4 bits a weight and 0.127 bits of
        doubly quantised constants.

Letters: B conversations, T tokens, I images, N visual tokens, C width, M width of the MLP, H heads,
V vocabulary, Q and K widths of queries and keys, r rank of LoRA, e bytes of a number.
"""

from dataclasses import dataclass, fields
from typing import Final, Literal

Stage = Literal[0, 1, 2, 3]
Offload = Literal["none", "optimizer", "all"]

FP32: Final = 4
NF4: Final = (4 + 0.127) / 8
"""Bytes of a weight quantised to 4 bits [QLoRA]."""
BUCKET: Final = 500_000_000
"""Numbers in DeepSpeed's buffer for gradients on their way (`reduce_bucket_size`)."""
LIVE: Final = 1_000_000_000
"""Most gathered parameters that ZeRO 3 holds at once (`stage3_max_live_parameters`)."""
CONTEXT: Final = 600_000_000
"""Bytes that CUDA and its libraries take of a device before the first tensor; an assumption."""
PEAK_OPERATIONS: Final = 989e12
"""Dense bf16 operations a second of an H100 SXM, by its data sheet."""
UTILISATION: Final = 0.4
"""Share of them that a step is assumed to reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """How many parameters a student has with its adapter.

    Attributes:
        frozen: base weights, those of the untrained copies that PEFT keeps included.
        linear: of those, weights of the language model's linear layers, which can be quantised.
        lora, projector, rotation: trained.
    """

    frozen: int
    linear: int
    lora: int
    projector: int
    rotation: int

    @property
    def trained(self) -> int:
        """All trained parameters."""
        return self.lora + self.projector + self.rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a student that decide its activations.

    Attributes:
        layers, width, inner: L, C and width of the MLP of the language model.
        query_width, key_width: heads times head width, of queries and of keys.
        heads: H, query heads.
        vocabulary: V.
        tower_width: features that the vision tower gives a patch.
        norms: RMS norms of width C in a decoder layer.
        head_norms: whether queries and keys are normed too.
    """

    layers: int
    width: int
    inner: int
    query_width: int
    key_width: int
    heads: int
    vocabulary: int
    tower_width: int
    norms: int = 2
    head_norms: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one micro-batch puts on a rank.

    Attributes:
        batch: B.
        tokens: T, padding counted.
        images: I.
        visual: N, of the image that has most.
        answers: A, answer tokens of the micro-batch.
        question: R, most question tokens of an image.
        teacher_bytes: of the cache's rows.
        padded: whether conversations differ in length, so that a mask is needed.
    """

    batch: int
    tokens: int
    images: int
    visual: int
    answers: int
    question: int
    teacher_bytes: int
    padded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What of a recipe decides memory.

    Attributes:
        number_bytes: of a weight or activation: 2 for bf16, 4 for fp32.
        rank: r of LoRA.
        dropout: whether LoRA's inputs are dropped out.
        checkpointing: activations are recomputed in the backward pass.
        flash: FlashAttention instead of SDPA.
        losses: the losses from the cache are computed.
        rotation: the visual tokens are rotated.
        stage, offload: of ZeRO.
        world: ranks.
        quantized: linear layers of the language model are held in 4 bits.
        mask_bytes: of one number of a dropout mask.
    """

    number_bytes: int
    rank: int
    dropout: bool
    checkpointing: bool
    flash: bool
    losses: bool
    rotation: bool
    stage: Stage
    offload: Offload = "none"
    world: int = 1
    quantized: bool = False
    mask_bytes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one rank's device, by part.

    Attributes:
        frozen: weights that are not trained.
        trained: weights that are.
        gradients: of the trained weights.
        optimiser: Adam's two moments, and float32 copies of the weights where there are any.
        activations: what the forward pass keeps for the backward pass.
        teacher: the cache's rows of a micro-batch.
        rest: buffers of DeepSpeed, workspace of the backward pass, and the CUDA context.
    """

    frozen: int
    trained: int
    gradients: int
    optimiser: int
    activations: int
    teacher: int
    rest: int

    @property
    def total(self) -> int:
        """All parts together: the peak."""
        return sum(getattr(self, field.name) for field in fields(self))


def estimate(parameters: Parameters, shape: Shape, load: Load, chosen: Settings) -> Memory:
    """Estimate the peak of one rank in a training step."""
    return Memory(
        **states(parameters, chosen),
        activations=kept_bytes(shape, load, chosen),
        teacher=load.teacher_bytes,
        rest=buffers(parameters, chosen) + workspace(shape, load, chosen) + CONTEXT,
    )


def states(parameters: Parameters, chosen: Settings) -> dict[str, int]:
    """Bytes of weights, gradients and optimiser on one rank's device [ZeRO].

    A trained weight costs e bytes as a weight and e as a gradient (e = 2 in bf16), and Adam's
    moments 8 more; ZeRO 1 to 3 also keep a float32 copy, 4. Stage 1 divides what the optimiser
    holds by the ranks, stage 2 also gradients, stage 3 also weights, frozen ones included.
    """
    e, trained, stage, world = chosen.number_bytes, parameters.trained, chosen.stage, chosen.world
    quantised = parameters.linear if chosen.quantized else 0
    frozen = (parameters.frozen - quantised) * e + quantised * NF4
    copies = 0 if stage == 0 and e == FP32 else FP32
    away_optimiser = chosen.offload != "none"
    away_weights = chosen.offload == "all" and stage == 3
    parts = {
        "frozen": 0 if away_weights else frozen / (world if stage == 3 else 1),
        "trained": 0 if away_weights else trained * e / (world if stage == 3 else 1),
        "gradients": trained * e / (world if stage >= 2 else 1),
        "optimiser": 0 if away_optimiser else trained * (8 + copies) / (world if stage else 1),
    }
    return {name: round(value) for name, value in parts.items()}


def kept_bytes(shape: Shape, load: Load, chosen: Settings) -> int:
    """Bytes that the forward pass keeps for the backward pass [Act, Flash].

    Every layer keeps `layer_bytes`, or with checkpointing its input alone. On top come the last
    norm, the rotation's input, projector, logits of the answers and the losses.
    """
    cells, e = load.batch * load.tokens, chosen.number_bytes
    layer = cells * shape.width * e if chosen.checkpointing else layer_bytes(shape, load, chosen)
    ends = cells * shape.width * (FP32 + e * chosen.rotation)
    heads = head_bytes(shape, load, e) + loss_bytes(shape, load, chosen)
    return shape.layers * layer + ends + heads


def layer_bytes(shape: Shape, load: Load, chosen: Settings) -> int:
    """Bytes that one decoder layer keeps: frozen weights, LoRA on seven linear layers.

    Per token, with e bytes a number and d bytes a dropout mask (1 on a GPU, e on a CPU):

        two RMS norms      float32 input of each                    2 * 4C
        q, k, v            dropped-out input of each LoRA           3 * C(e + d)
        attention          q, k, v and output                       2e(Q + K), 4eQ for SDPA
        o                  dropped-out input of its LoRA            Q(e + d)
        gate, up           dropped-out input of each LoRA           2 * C(e + d)
        SiLU and product   gate, SiLU(gate), up                     3eM
        down               dropped-out input of its LoRA            M(e + d)
        LoRA               A x of each                              7er

    where Q and K are the widths of queries and keys, M that of the MLP. A frozen linear layer
    keeps nothing, but under ZeRO 3, where DeepSpeed's own linear layer keeps its input: 2C + M
    numbers more. Without dropout q, k, v share one input, and so do gate and up, and o takes
    the attention's output. SDPA repeats keys and values for every query head where a padding
    mask is needed, and keeps that mask, T^2 numbers a conversation. Gemma-3 has four norms a
    layer, and norms queries and keys.
    """
    e, r = chosen.number_bytes, chosen.rank
    c, m, q, k = shape.width, shape.inner, shape.query_width, shape.key_width
    masked = load.padded and not chosen.flash
    norms = FP32 * (shape.norms * c + shape.head_norms * (q + k))
    plain = (2 * c + m) * e
    inputs = plain
    if chosen.dropout:
        inputs = (5 * c + q + m) * (e + chosen.mask_bytes) + plain * (chosen.stage == 3)
    attention = 4 * q * e if masked else 2 * (q + k) * e
    per_token = norms + inputs + attention + 3 * m * e + 7 * r * e
    mask = load.batch * load.tokens**2 * e if masked else 0
    return load.batch * load.tokens * per_token + mask


def head_bytes(shape: Shape, load: Load, number_bytes: int) -> int:
    """Bytes that projector (two linear layers) and logits keep: those of answers, as float32."""
    projector = load.images * load.visual * (shape.tower_width + 2 * shape.width) * number_bytes
    return projector + load.answers * shape.vocabulary * FP32


def loss_bytes(shape: Shape, load: Load, chosen: Settings) -> int:
    """Bytes that both losses keep, all float32.

    L_vis: visual tokens, their unit vectors twice, and the gap of the similarities. L_att: the
    probe's softmax rows of the question, its queries, and the layer's keys.
    """
    if not chosen.losses:
        return 0
    n = load.visual
    similarities = n * n + 3 * n * shape.width
    rows = load.question * (shape.heads * load.tokens + shape.query_width)
    return load.images * (similarities + rows + load.tokens * shape.key_width) * FP32


def buffers(parameters: Parameters, chosen: Settings) -> int:
    """Bytes of DeepSpeed's own: gradients on their way, gathered weights of ZeRO 3."""
    if chosen.stage == 0:
        return 0
    bucket = BUCKET * chosen.number_bytes
    if chosen.stage < 3:
        # The update of a partition makes a float32 copy of its gradients.
        return bucket + parameters.trained * FP32 // chosen.world
    gathered = min(LIVE, parameters.frozen + parameters.trained) * chosen.number_bytes
    return bucket + (gathered if chosen.world > 1 or chosen.offload == "all" else 0)


def workspace(shape: Shape, load: Load, chosen: Settings) -> int:
    """Bytes that the backward pass holds at once, beside what the forward pass kept.

    Gradients in the MLP of one layer, 3M + 2C a token, with the layer itself where it is
    recomputed; or the gradient of the logits, float32 and as they came.
    """
    e = chosen.number_bytes
    layer = load.batch * load.tokens * (3 * shape.inner + 2 * shape.width) * e
    if chosen.checkpointing:
        layer += layer_bytes(shape, load, chosen)
    return max(layer, load.answers * shape.vocabulary * (FP32 + e))


def checkpoint_bytes(trained: int, number_bytes: int) -> int:
    """Bytes of one checkpoint: float32 weights and both moments, and the adapter."""
    return trained * (3 * FP32 + number_bytes)


def step_operations(parameters: Parameters, load: Load, chosen: Settings) -> float:
    """Floating-point operations of one micro-batch's forward and backward pass.

    Two a weight and token forward, two backward for the gradient of the input; the frozen weights
    have no gradient of their own, the trained ones do. Recomputing adds a forward pass. Kaplan et
    al., arXiv 2001.08361, section 2.1, count 6 where everything is trained. Attention's T x T
    products are left out: at T = 1,000 they are a few in a hundred.
    """
    cells = load.batch * load.tokens
    passes = 6 if chosen.checkpointing else 4
    return float(cells * (passes * parameters.frozen + 6 * parameters.trained))


def gpu_seconds(operations: float) -> float:
    """Seconds that an H100 takes for operations in bf16, if it reaches `UTILISATION`."""
    return operations / (UTILISATION * PEAK_OPERATIONS)
