"""Shares of streams: the axioms of Shapley, and the answers of subsets."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from airstreams.evaluation.streams import MOST_STREAMS, SubsetModel, shapley, subsets_of, too_few_or_many
from airstreams.models.airstreams import answer_of
from tests.models.test_airstreams import clip, small_model

STREAMS = ("rgb", "flow", "semantic")


def every_subset(streams):
    return [frozenset(some) for size in range(len(streams) + 1) for some in combinations(streams, size)]


@pytest.mark.parametrize("streams", [("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d")])
def test_shares_are_the_mean_over_all_orders_and_sum_to_the_whole(streams):
    rng = np.random.default_rng(0)
    values = {subset: rng.normal(size=3) for subset in every_subset(streams)}
    shares = shapley(values, streams)
    for stream in streams:
        added = []
        for order in permutations(streams):
            before = frozenset(order[: order.index(stream)])
            added.append(values[before | {stream}] - values[before])
        assert shares[stream] == pytest.approx(np.mean(added, axis=0))
    assert sum(shares.values()) == pytest.approx(values[frozenset(streams)] - values[frozenset()])


def test_equal_streams_have_equal_shares_and_an_idle_one_has_none():
    idle = {subset: float(len(subset & {"a", "b"}) > 0) for subset in every_subset("abc")}
    assert shapley(idle, "abc") == pytest.approx({"a": 0.5, "b": 0.5, "c": 0})


@pytest.mark.parametrize("heads", [["merged"], ["rgb", "flow", "merged"]])
def test_the_subset_of_all_streams_gives_the_models_answer(heads):
    model = small_model(STREAMS).eval()
    subsets = SubsetModel(model, heads)
    with torch.inference_mode():
        found = subsets(clip(), list(subsets.subsets)).logits
        expected = answer_of(model(clip(), heads).logits, False)
        torch.testing.assert_close(found["rgb+flow+semantic"].softmax(dim=1), expected, rtol=0, atol=1e-6)
        if len(heads) > 1:  # the stream's own head, and the merged tower fed by it
            logits = model.subset_logits(clip(), heads, [["flow"]])[0]
            assert set(logits) == {"flow", "merged"}
            own = model(clip(), ["flow"])
            torch.testing.assert_close(logits["flow"], own.logits["flow"])
            torch.testing.assert_close(found["flow"], (logits["flow"] + logits["merged"]) / 2)


def test_models_of_one_stream_or_of_many_have_no_shares():
    assert too_few_or_many("a")
    assert too_few_or_many("abcde"[: MOST_STREAMS + 1])
    assert not too_few_or_many("abcd")
    assert list(subsets_of(("rgb", "flow"))) == ["rgb", "flow", "rgb+flow"]
