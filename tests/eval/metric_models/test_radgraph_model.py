"""RadGraph's network against its formulas, span by span and pair by pair."""

import torch
from transformers import BertConfig

from medalign.eval.metric_models.radgraph_model import RadGraphModel, RadGraphSizes, Span

WORDS = [[5], [6, 7], [8], [], [9], [10]]
OPENING, CLOSING = 2, 3


def tiny() -> RadGraphModel:
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=1.0,
    )
    sizes = RadGraphSizes(
        max_span_width=3,
        feature_size=4,
        layers=1,
        hidden=12,
        spans_per_word=0.9,
        max_pieces=32,
        entities=2,
        relations=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RadGraphModel(config, sizes).eval()
        with torch.no_grad():
            model.mention.last.weight.mul_(6)  # so that mentions decide as much as pairs
            model.mention.last.bias.fill_(-1.7)
    return model


@torch.no_grad()
def test_a_pair_is_related_by_its_own_score_and_those_of_both_mentions() -> None:
    model = tiny()
    entities, pairs = model(WORDS, OPENING, CLOSING)
    ids = torch.tensor([[OPENING, *(piece for word in WORDS for piece in word), CLOSING]])
    states = iter(model.bert(input_ids=ids).last_hidden_state[0, 1:-1])
    words = [
        torch.stack([next(states) for _ in word]).mean(0) if word else torch.zeros(16)
        for word in WORDS
    ]
    spans: dict[Span, torch.Tensor] = {
        (k, k + more): torch.cat([words[k], words[k + more], model.width.weight[more]])
        for k in range(6)
        for more in range(3)
        if k + more < 6
    }
    scores = {span: model.entity(vector) for span, vector in spans.items()}
    assert entities == {s: int(v.argmax()) for s, v in scores.items() if v.max() > 0}
    mention = {span: float(model.mention(vector)) for span, vector in spans.items()}
    kept = sorted(sorted(spans, key=lambda span: -mention[span])[:6])  # 0.9 * 6 words, upwards
    wanted = []
    for one in kept:
        for other in kept:
            a, b = spans[one], spans[other]
            score = model.relation(torch.cat([a, b, a * b])) + mention[one] + mention[other]
            if score.max() > 0:
                wanted.append((one, other, int(score.argmax())))
    assert pairs == wanted
    assert 0 < len(wanted) < 36
