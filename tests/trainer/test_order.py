import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medalign.trainer.data.order import POOL_STEPS, Lengths, StepOrder


def order_of(length: int, lengths: Lengths | None = None, **changes: int) -> StepOrder:
    asked = {
        "seed": 3, "batch_size": 1, "accumulation": 1, "rank": 0, "world": 1, "start": 0, "stop": 6
    }  # fmt: skip
    return StepOrder(length=length, lengths=lengths, **(asked | changes))


def some_lengths(length: int) -> Lengths:
    return np.random.default_rng(7).integers(10, 400, length).astype(np.int32)


@given(
    length=st.integers(1, 50),
    seed=st.integers(0, 10),
    per_step=st.integers(1, 7),
    grouped=st.booleans(),
)
def test_every_epoch_visits_each_sample_once(
    length: int, seed: int, per_step: int, grouped: bool
) -> None:
    lengths = some_lengths(length) if grouped else None
    stop = -(-4 * length // per_step)
    order = order_of(length, lengths, seed=seed, batch_size=per_step, stop=stop)
    stream = [number for numbers in order for number in numbers]
    for begin in range(0, 4 * length, length):
        assert sorted(stream[begin : begin + length]) == list(range(length))


@pytest.mark.parametrize("grouped", [False, True])
def test_epochs_and_seeds_have_orders_of_their_own(grouped: bool) -> None:
    lengths = some_lengths(40) if grouped else None
    orders = {
        tuple(order_of(40, lengths, seed=seed, batch_size=8).epoch(epoch).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


@given(
    length=st.integers(1, 30),
    batch_size=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    world=st.integers(1, 3),
    start=st.integers(0, 4),
    grouped=st.booleans(),
)
def test_a_step_holds_the_same_samples_for_every_number_of_ranks_and_any_start(
    length: int, batch_size: int, accumulation: int, world: int, start: int, grouped: bool
) -> None:
    lengths = some_lengths(length) if grouped else None

    def steps(world: int, batch_size: int, accumulation: int, start: int) -> list[list[int]]:
        split = {"batch_size": batch_size, "accumulation": accumulation, "world": world}
        ranks = [
            list(order_of(length, lengths, rank=rank, start=start, **split))
            for rank in range(world)
        ]
        return [
            sorted(
                k
                for micro in ranks
                for part in micro[s * accumulation : (s + 1) * accumulation]
                for k in part
            )
            for s in range(6 - start)
        ]

    whole = steps(1, batch_size * accumulation * world, 1, 0)
    assert steps(world, batch_size, accumulation, start) == whole[start:]


def test_grouping_pads_less_and_mixes_long_and_short_steps() -> None:
    lengths = some_lengths(1000)

    def padded(order: StepOrder) -> int:
        return sum(int(lengths[n].max()) * len(n) - int(lengths[n].sum()) for n in order)

    split = {"batch_size": 4, "accumulation": 2, "stop": 125}
    plain, grouped = (order_of(1000, by, **split) for by in (None, lengths))
    assert padded(grouped) < 0.1 * padded(plain)
    steps = [lengths[numbers].mean() for numbers in list(grouped)[::2]]
    # The order of steps is drawn, so lengths neither rise nor fall within a pool.
    assert abs(np.corrcoef(np.arange(POOL_STEPS), steps[:POOL_STEPS])[0, 1]) < 0.7
