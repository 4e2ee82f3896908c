"""Choosing the best continuations of several hypotheses."""

import torch

from medalign.eval.decoders.opera import Beams, choose


def test_a_beam_keeps_what_belongs_to_its_parent() -> None:
    beams = Beams(
        tokens=torch.tensor([[1, 2], [3, 4]]),
        scores=torch.tensor([-1.0, -2.0]),
        finished=(),
        trust=torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64),
    )
    scores = torch.full((2, 6), -9.0)
    scores[0, 3], scores[1, 5] = -3.0, -0.5
    after, parents, done = choose(beams, scores, frozenset(), 9)
    assert parents.tolist() == [1, 0]
    assert after.tokens.tolist() == [[3, 4, 5], [1, 2, 3]]
    assert after.scores.tolist() == [-2.5, -4.0]
    assert after.trust.tolist() == [[0.3, 0.4], [0.1, 0.2]]
    assert (after.finished, done) == ((), False)


def test_an_end_ranked_behind_the_beams_finishes_nothing() -> None:
    beams = Beams.begin(1, torch.device("cpu"))
    scores = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    after, _, _ = choose(beams, scores, frozenset({1}), 9)
    assert (after.finished, after.tokens.tolist()) == ((), [[0]])
    after, _, _ = choose(beams, scores, frozenset({0}), 9)
    assert (after.finished, after.tokens.tolist()) == (((-1.0, (0,)),), [[1]])


def test_as_many_continuations_stand_by_as_there_are_ends() -> None:
    scores = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    after, _, done = choose(Beams.begin(1, torch.device("cpu")), scores, frozenset({0, 1}), 9)
    assert after.tokens.tolist() == [[2]]
    assert after.finished == ((-1.0, (0,)),)
    # No running hypothesis is as likely as the finished one.
    assert done
