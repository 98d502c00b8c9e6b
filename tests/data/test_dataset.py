import numpy as np
import pytest
import torch

from reformer_lab.data.config import DuplicationConfig, ImagesConfig
from reformer_lab.data.dataset import EpochOrder, check_request, eval_selection, open_dataset
from reformer_lab.errors import UserError


def test_each_epoch_is_another_permutation():
    order = EpochOrder(10, seed=0)
    first, second = order.take(0, 10), order.take(10, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)


def test_order_does_not_depend_on_how_it_is_asked():
    whole = EpochOrder(7, seed=1).take(0, 40)
    order = EpochOrder(7, seed=1)
    assert np.array_equal(order.take(23, 17), whole[23:])
    assert np.array_equal(np.concatenate([order.take(i, 1) for i in range(40)]), whole)
    assert not np.array_equal(EpochOrder(7, seed=2).take(0, 40), whole)


@pytest.mark.parametrize(("count", "batch_size", "limit", "expected"), [
    (5, 2, None, [[0, 1], [2, 3], [4]]),
    (5, 2, 9, [[0, 1], [2, 3], [4]]),
    (10, 4, 5, [[0, 2, 4, 6], [8]]),
    (3, 8, 1, [[0]]),
])
def test_eval_selection_is_spread_and_complete(count, batch_size, limit, expected):
    assert [list(numbers) for numbers in eval_selection(count, batch_size, limit)] == expected


@pytest.mark.parametrize("request_", [("train", 1, None), ("validation", 0, None), ("test", 1, 0)])
def test_bad_requests(request_):
    with pytest.raises(UserError):
        check_request(*request_)


@pytest.mark.parametrize("config", [DuplicationConfig(length=16), ImagesConfig(side=4)], ids=lambda c: c.kind)
def test_global_generators_are_left_alone(config):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    dataset = open_dataset(config, seed=0)
    batch = dataset.train_batch(0, 3)
    list(dataset.eval_batches("validation", 2, limit=2))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.tokens.shape == (3, dataset.length)


def test_unknown_config_is_an_error():
    with pytest.raises(UserError, match="str"):
        open_dataset("enwik8", seed=0)  # type: ignore[arg-type]
