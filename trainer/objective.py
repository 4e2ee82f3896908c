"""The three loss terms of one micro-batch (Eqs. 3 to 7), computed inside one module.

Everything that needs a gradient happens in this `forward`: DeepSpeed scales by the number of
micro-steps only what a module returns.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .data.batch import Batch
from .losses import answer_nll, attention_alignment_terms, gram_alignment_terms
from .recipe.sections import LossSection
from .student import llava_of
from .students.families import family_of
from .students.probe import Tap, show_blank_images


@dataclass(frozen=True, slots=True)
class Share:
    """What one answer token and one image weigh in a step's loss.

    A step's lm is a mean over all its answer tokens and its vis and att are means over all its
    images, on all ranks and micro-steps. Dividing each micro-batch by its own counts instead
    would make the gradient depend on the split.
    """

    token: float
    image: float

    @classmethod
    def of(cls, tokens: int, images: int, micro_steps: int) -> "Share":
        """Make the weights of a step.

        Args:
            tokens: answer tokens of the step, over all ranks.
            images: images with a teacher of the step, over all ranks.
            micro_steps: accumulation * ranks; DeepSpeed divides the gradient by it.
        """
        return cls(micro_steps / max(1, tokens), micro_steps / max(1, images))


class Objective(nn.Module):
    """A student with its loss.

    Args:
        student: PEFT model from `add_adapter`, or a bare model with `attach`ed probe.
        loss: weights and kinds of the terms.
    """

    def __init__(self, student: Any, loss: LossSection) -> None:
        super().__init__()
        self.student = student
        self.loss = loss
        # All ranks must use the same modules in the same order, whatever their micro-batches hold:
        # ZeRO 2 adds up gradients in the order in which they come, ZeRO 3 gathers weights so.
        show_blank_images(llava_of(student))

    def forward(self, batch: Batch, share: Share) -> tuple[Tensor, Tensor]:
        """Compute this micro-batch's part of the step's loss.

        Returns:
            The scalar to differentiate, and [3] detached float32 sums: lm over answer tokens,
            vis and att over images.

        Raises:
            RuntimeError: the attention carries no gradient (re-entrant checkpointing).
        """
        model = llava_of(self.student)
        lm, tap = look(model, batch)
        vis, att = self._alignment(batch, tap)
        total = lm * share.token + (self.loss.alpha * vis + self.loss.beta * att) * share.image
        return total, torch.stack([lm, vis, att]).detach()

    def _alignment(self, batch: Batch, tap: Tap) -> tuple[Tensor, Tensor]:
        teacher = batch.teacher
        if teacher is None or tap.states is None or tap.attention is None:
            zero = torch.zeros((), device=batch.input_ids.device)
            return zero, zero
        if self.loss.beta and torch.is_grad_enabled() and not tap.attention.requires_grad:
            raise RuntimeError("the probed attention has no gradient: re-entrant checkpointing?")
        # A term of weight 0 is measured, not trained on.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.loss.alpha > 0):
            vis = gram_alignment_terms(tap.states, teacher.gram(), teacher.valid).sum()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.loss.beta > 0):
            att = attention_alignment_terms(
                tap.attention,
                teacher.attention,
                teacher.valid,
                self.loss.attention,
                self.loss.temperature,
            ).sum()
        return vis, att


def look(model: Any, batch: Batch) -> tuple[Tensor, Tap]:
    """Run a student over a batch.

    Returns:
        The cross-entropy summed over answer tokens, and the tap with what it saw at layer l.
    """
    family = family_of(model)
    tap = batch.tap(model.config.image_token_id)
    if batch.pixel_values is None:
        tap.blank = family.blank(model.config, model.device, model.dtype)
    hidden = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values,
        use_cache=False,
        tap=tap,
        **family.inputs(model.config, batch.input_ids, batch.grids),
    ).last_hidden_state
    # Logits of the answers alone: a few of many hundred positions, times the vocabulary.
    logits = model.get_submodule(family.head)(hidden.flatten(0, 1)[batch.predicts])
    return answer_nll(logits, batch.targets), tap
