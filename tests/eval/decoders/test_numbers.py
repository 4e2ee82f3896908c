"""Numbers worked out by hand, or with the released code, for every formula."""

import math

import pytest
import torch
from transformers import TopPLogitsWarper

from medalign.eval.decoders.avisc import blind_tokens
from medalign.eval.decoders.call import contrasted, keep_plausible
from medalign.eval.decoders.damro import top_patches
from medalign.eval.decoders.dola import (
    divergence,
    layer_contrast,
    premature,
    premature_layers,
    punished,
)
from medalign.eval.decoders.m3id import cut_contrast, gated_contrast, weight
from medalign.eval.decoders.opera import grown, most_frequent, over_trust
from medalign.eval.decoders.pai import boosted, boosted_layers, refined
from medalign.eval.decoders.settings import DecodingError, Nucleus, Pai
from medalign.eval.decoders.vcd import diffusion, noised_images

INF = float("inf")
L = torch.tensor([[2, 1, 0.5, 0, -3]], dtype=torch.float64)
OTHER = torch.tensor([[2.5, 0, 0.5, -1, -3]], dtype=torch.float64)


def near(found: torch.Tensor, wanted: list[float]) -> None:
    assert found.flatten().tolist() == pytest.approx(wanted, abs=1e-5)


def test_the_cut_keeps_the_most_likely_token_always_and_every_token_at_zero() -> None:
    assert torch.equal(keep_plausible(L, L, 0.0), L)
    near(keep_plausible(L, L, 1.0), [2, -INF, -INF, -INF, -INF])
    # ln 0.1 below 2 is -0.302585, so 0 stays and -3 goes; logits or log-probabilities alike.
    for decides in (L, L.log_softmax(-1)):
        near(keep_plausible(L, decides, 0.1), [2, 1, 0.5, 0, -INF])


def test_nucleus_keeps_the_fewest_tokens_that_reach_its_mass() -> None:
    p = torch.tensor([[0.577006, 0.212269, 0.128748, 0.078089, 0.003888]])
    kept = TopPLogitsWarper(Nucleus().top_p)(None, p.log()).exp()
    near(kept, [0.577006, 0.212269, 0.128748, 0, 0])
    assert float(kept.sum()) == pytest.approx(0.918, abs=5e-4)


@pytest.mark.parametrize(
    ("alpha", "scores", "probabilities"),
    [
        (1.0, [1.5, 2, 0.5, 1, -INF], [0.276004, 0.455054, 0.101536, 0.167405, 0]),
        (0.5, [1.75, 1.5, 0.5, 0.5, -INF], [0.425204, 0.331149, 0.121823, 0.121823, 0]),
        (0.0, [2, 1, 0.5, 0, -INF], [0.579259, 0.213097, 0.129250, 0.078394, 0]),
    ],
)
def test_vcd_contrasts_and_cuts(
    alpha: float, scores: list[float], probabilities: list[float]
) -> None:
    found = contrasted(L, OTHER, alpha, 0.1)
    near(found, scores)
    near(found.softmax(-1), probabilities)


def test_the_model_decides_what_is_plausible_not_the_contrast() -> None:
    """The last token would win by far, if what is cut were looked for after the contrast."""
    other = torch.tensor([[2, 1, 0.5, 0, -30]], dtype=torch.float64)
    near(contrasted(L, other, 1.0, 0.1), [2, 1, 0.5, 0, -INF])
    near(refined(L, other, 3.0, 0.1)[:, 4:], [-INF])
    near(cut_contrast(L, other, 50, 0.02, 0.1)[:, 4:], [-INF])
    earlier = torch.stack([other])
    near(layer_contrast(L, earlier, 0.1, "published")[:, 4:], [-INF])


@pytest.mark.parametrize(
    ("step", "signal", "noise"),
    [
        (0, 0.999989, 0.004728),
        (100, 0.998293, 0.058408),
        (500, 0.863017, 0.505175),
        (700, 0.592677, 0.805440),
        (999, 0.285043, 0.958515),
    ],
)
def test_vcd_diffuses_by_its_schedule(step: int, signal: float, noise: float) -> None:
    assert diffusion(step) == pytest.approx((signal, noise), abs=1e-5)


def test_vcd_noise_belongs_to_record_and_seed() -> None:
    pixels = torch.zeros(3, 3, 4, 4)
    signal, spread = diffusion(500)
    first = noised_images(pixels, 500, ["a", "b", "b"], 0)
    alone = noised_images(pixels[:2], 500, ["b", "b"], 0)
    assert torch.equal(first[1:], alone)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    assert not torch.equal(noised_images(pixels, 500, ["a", "b", "b"], 1), first)
    many = noised_images(torch.ones(1, 3, 200, 200), 500, ["a"], 0)
    assert float(many.mean()) == pytest.approx(signal, abs=0.01)
    assert float(many.std()) == pytest.approx(spread, abs=0.01)


def test_dola_selects_by_the_papers_divergence_or_by_that_of_the_code() -> None:
    p = torch.tensor([[-3, 2, 4, -2]], dtype=torch.float64).log_softmax(-1)
    a = torch.tensor([[-3, 5, 0, -3]], dtype=torch.float64).log_softmax(-1)
    b = torch.tensor([[3, -3, 2, 0]], dtype=torch.float64).log_softmax(-1)
    both = torch.stack([a, b])
    assert divergence(p, both, "published").flatten().tolist() == pytest.approx(
        [0.4837, 0.3762], abs=1e-4
    )
    assert divergence(p, both, "reference").flatten().tolist() == pytest.approx(
        [1.0436, 1.1512], abs=1e-4
    )
    assert premature(p, both, "published").tolist() == [0]
    assert premature(p, both, "reference").tolist() == [1]


def test_dola_contrasts_with_the_selected_layer() -> None:
    p = torch.tensor([[2, 1, 0, -1, -4]], dtype=torch.float64)
    q1 = torch.tensor([[1, 1, 1, 0, 0]], dtype=torch.float64)
    q2 = torch.tensor([[2, 1.2, 0, -1, -3]], dtype=torch.float64)
    both = torch.stack([q1, q2])
    found = divergence(p.log_softmax(-1), both.log_softmax(-1), "reference").flatten()
    near(found, [0.148568, 0.001257])
    for variant in ("published", "reference"):
        scores = layer_contrast(p, both, 0.1, variant)
        near(scores, [0.876166, -0.123834, -1.123833, -INF, -INF])


def test_dola_selects_for_each_sample_by_itself() -> None:
    p = torch.tensor([[2.0, 0, 0], [0, 2.0, 0]]).log_softmax(-1)
    far_from_first = torch.tensor([[0.0, 0, 3], [0, 2.0, 0]]).log_softmax(-1)
    far_from_second = torch.tensor([[2.0, 0, 0], [0, 0.0, 3]]).log_softmax(-1)
    both = torch.stack([far_from_first, far_from_second])
    assert premature(p, both, "published").tolist() == [0, 1]


def test_dola_with_equal_layers_gives_a_uniform_distribution_on_plausible_tokens() -> None:
    near(layer_contrast(L, torch.stack([L, L]), 0.1, "published"), [0, 0, 0, 0, -INF])


def test_dola_with_a_uniform_layer_gives_the_base_on_plausible_tokens() -> None:
    uniform = torch.zeros(1, 1, 5, dtype=torch.float64)
    found = layer_contrast(L, uniform, 0.1, "published").softmax(-1)
    near(found, keep_plausible(L, L, 0.1).softmax(-1).flatten().tolist())


def test_a_repetition_penalty_lowers_positive_and_negative_scores() -> None:
    scores = torch.tensor([[3.0, -2.0, 3.0, -2.0, -INF]])
    repeated = torch.tensor([[True, True, False, False, True]])
    assert punished(scores, repeated, 1.5).tolist() == [[2.0, -3.0, 3.0, -2.0, -INF]]


@pytest.mark.parametrize(
    ("text", "layers", "chosen"),
    [
        ("low", 32, list(range(0, 16, 2))),
        ("high", 32, list(range(16, 32, 2))),
        ("low", 28, list(range(0, 14, 2))),
        ("low", 5, [0, 2]),
        ("high", 5, [4]),
        ("low", 1, [0]),
        ("high", 1, [0]),
        ("4,0,2", 6, [0, 2, 4]),
    ],
)
def test_dola_knows_its_buckets(text: str, layers: int, chosen: list[int]) -> None:
    assert premature_layers(text, layers) == chosen


@pytest.mark.parametrize("text", ["0,6", "-1", "middle", "", "0,,2"])
def test_dola_refuses_layers_that_are_not_there(text: str) -> None:
    with pytest.raises(DecodingError, match="dola: layers"):
        premature_layers(text, 6)


def test_avisc_finds_blind_tokens() -> None:
    attention = torch.tensor(
        [[0.05, 0.05, 0.05, 0.25], [0.02, 0.02, 0.02, 0.04], [0.10, 0.10, 0.10, 0.50]],
        dtype=torch.float64,
    )
    # Shares .3077, .0769, .6154: one layer for gamma .5, two for .9. Deviation .2, threshold .4.
    assert blind_tokens(attention, 0.5, 1.0).tolist() == [False, False, False, True]
    assert blind_tokens(attention, 0.5, -0.6).all()  # .2 - .6 * .2 < .1
    assert blind_tokens(attention, 0.5, 1.6).tolist() == [False] * 4  # .2 + 1.6 * .2 > .5
    assert blind_tokens(attention, 0.5, -INF).all()
    assert not blind_tokens(attention, 0.5, INF).any()
    flat = torch.full((3, 4), 0.1, dtype=torch.float64)
    assert blind_tokens(flat, 0.5, -INF).all()
    assert not blind_tokens(flat, 0.5, INF).any()
    # At the threshold itself a token stands out.
    assert blind_tokens(torch.full((3, 4), 0.25, dtype=torch.float64), 0.5, 0.0).all()


def test_avisc_reads_as_many_layers_as_gamma_asks_for() -> None:
    # The second layer looks elsewhere than the first; only with both is token 0 not alone.
    attention = torch.tensor([[0.6, 0.0, 0.0], [0.0, 0.0, 0.4]], dtype=torch.float64)
    assert blind_tokens(attention, 0.5, 0.5).tolist() == [True, False, False]
    assert blind_tokens(attention.flip(0), 0.5, 0.5).tolist() == [True, False, False]
    assert blind_tokens(attention, 0.7, -0.5).tolist() == [True, False, True]
    assert blind_tokens(attention, 1.0, -0.5).tolist() == [True, False, True]
    # Shares .5, .25, .25: gamma .5 is reached by the first one.
    attention = torch.tensor([[0.3125, 0.1875], [0.0, 0.25], [0.0, 0.25]], dtype=torch.float64)
    assert blind_tokens(attention, 0.5, 0.0).tolist() == [True, False]
    assert blind_tokens(attention, 0.51, 0.0).tolist() == [False, True]


def test_m3id_grows_with_the_answer() -> None:
    assert weight(1, 0.02) == pytest.approx(0.020201, abs=1e-6)
    assert weight(50, 0.02) == pytest.approx(1.718282, abs=1e-6)
    first = cut_contrast(L, OTHER, 1, 0.02, 0.1)
    near(first, [-0.556475, -1.526173, -2.046375, -2.526173, -INF])
    late = cut_contrast(L, OTHER, 50, 0.02, 0.1)
    near(late, [-1.109023, 0.468399, -1.749883, -0.531601, -INF])
    assert (int(first.argmax()), int(late.argmax())) == (0, 1)


def test_m3id_leaves_a_sure_model_alone() -> None:
    # The most likely token has .577, which is not below a gate of .3, but is below .6.
    assert torch.equal(gated_contrast(L, OTHER, 50, 0.02, 0.3), L.log_softmax(-1))
    open_ = gated_contrast(L, OTHER, 50, 0.02, 0.6)
    near(open_, cut_contrast(L, OTHER, 50, 0.02, 0.0).flatten().tolist())
    rows = torch.cat([L, torch.zeros_like(L)])  # the second sample has .2: gated by itself
    found = gated_contrast(rows, torch.cat([OTHER, OTHER]), 50, 0.02, 0.3)
    assert torch.equal(found[:1], L.log_softmax(-1))
    assert not torch.allclose(found[1], rows[1].log_softmax(-1))


def test_pai_raises_scores_of_image_tokens_negative_ones_too() -> None:
    row = torch.tensor([[[1, -2, 0.5, 0]]], dtype=torch.float64)
    visual = torch.tensor([[False, True, True, False]])
    near(row.softmax(-1), [0.494023, 0.024596, 0.299640, 0.181741])
    changed = boosted(row, visual, 0.2)
    near(changed, [1, -1.6, 0.6, 0])
    near(changed.softmax(-1), [0.473379, 0.035160, 0.317315, 0.174146])
    hidden = torch.full((1, 1, 2), -INF)
    assert torch.equal(boosted(hidden, torch.tensor([[True, False]]), 0.2), hidden)


def test_pai_changes_the_layers_it_is_told() -> None:
    assert boosted_layers(Pai(), 6) == range(2, 6)
    assert boosted_layers(Pai(first_layer=0, last_layer=3), 6) == range(4)
    for first, last in ((6, -1), (2, 6), (4, 3)):
        with pytest.raises(DecodingError, match="which has 0 to 5"):
            boosted_layers(Pai(first_layer=first, last_layer=last), 6)


def test_pai_contrasts_and_cuts() -> None:
    near(refined(L, OTHER, 1.1, 0.1), [-0.582441, -1.432441, -2.032442, -2.432441, -INF])
    assert torch.equal(refined(L, OTHER, 1.0, 0.1), L.log_softmax(-1))


def test_opera_multiplies_columns() -> None:
    rows = [[0.02], [0.03, 0.01], [0.04, 0.005, 0.02]]
    trust = torch.zeros(0, dtype=torch.float64)
    for row in rows:
        trust = grown(trust, torch.tensor(row), 50.0)
    found = over_trust(trust)
    # (.02 * .03 * .04) * 50^3 = 3, (.01 * .005) * 50^2 = .125, .02 * 50 = 1; times 1e-7.
    assert found.tolist() == pytest.approx([3.0e-7, 1.25e-8, 1.0e-7], rel=1e-5)
    assert int(found.argmax()) == 0


def test_opera_stays_finite_and_half_precision_flushes_to_zero() -> None:
    sure = torch.full((600,), 600 * math.log(50.0), dtype=torch.float64)
    assert over_trust(sure).isfinite().all()
    unseen = grown(torch.zeros(1, dtype=torch.float64), torch.tensor([0.0, 0.5]), 50.0)
    assert over_trust(unseen).tolist() == pytest.approx([0, 2.5e-6])
    small = torch.log(torch.tensor([0.01, 0.2], dtype=torch.float64))
    assert int(over_trust(small).argmax()) == 1
    assert over_trust(small, half=True).tolist() == [0, 0]  # below 3e-8
    assert over_trust(sure, half=True).isfinite().all()


def test_the_most_frequent_place_is_the_smallest_of_equals() -> None:
    assert most_frequent([3, 1, 3, 1, 2]) == 1
    assert most_frequent([3, 3, 1]) == 3


def test_damro_takes_the_most_attended_patches_in_order() -> None:
    attention = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.4, 0.1, 0.3, 0.2]])
    assert top_patches(attention, 2).tolist() == [[1, 3], [0, 2]]
    with pytest.raises(DecodingError, match="top_tokens is 5, an image of this student has 4"):
        top_patches(attention, 5)
