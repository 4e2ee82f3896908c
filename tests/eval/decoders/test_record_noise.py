"""Drawing with noise that belongs to a record: a fresh draw for every token."""

import torch

from medalign.eval.decoders.call import PerRecordNoise, generators

NO_TOKENS = torch.zeros(1, 0, dtype=torch.long)


def test_every_token_is_drawn_anew_and_as_likely_as_it_is() -> None:
    wanted = torch.tensor([0.6, 0.3, 0.1, 0.0])
    draw, n = PerRecordNoise(["a"], 0), 4000
    scores = wanted.log()[None]
    tokens = torch.cat([draw(NO_TOKENS, scores).argmax(-1) for _ in range(n)])
    found = torch.bincount(tokens, minlength=4) / n
    error = (found - wanted).abs() / (wanted * (1 - wanted) / n).sqrt().clamp_min(1e-9)
    assert error.max() < 4  # standard deviations
    # A token tells nothing of the next one.
    both = (tokens[1:] == 0) & (tokens[:-1] == 0)
    assert abs(float(both.float().mean()) - 0.36) < 4 * (0.36 * 0.64 / n) ** 0.5


def test_noise_of_images_is_not_that_of_tokens() -> None:
    tokens, image, other = (
        torch.rand(4, generator=one)
        for one in (
            *generators(["a"], 0),
            *generators(["a"], 0, "image"),
            *generators(["a"], 0, "embeddings"),
        )
    )
    assert not torch.equal(tokens, image)
    assert not torch.equal(image, other)
