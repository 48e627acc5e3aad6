import numpy as np
import pytest

from llabel.errors import InputError
from llabel.metrics import log_loss
from llabel.statistics.losses import compare_losses, row_losses


def losses(seed: int, rows: int = 400, shift: float = 0.0, seeds: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1.0, 0.6, size=(seeds, rows)) + shift


def test_losses_of_rows_have_the_log_loss_for_their_mean() -> None:
    rng = np.random.default_rng(0)
    proba = rng.dirichlet(np.ones(3), size=(2, 50))
    y = rng.integers(3, size=50)
    found = row_losses(y, proba)
    assert found.shape == (2, 50)
    assert found.mean(axis=1) == pytest.approx([log_loss(y, one) for one in proba])


def test_a_system_does_not_differ_from_itself() -> None:
    a = losses(0)
    pair = compare_losses(a, a.copy())
    assert (pair.difference, pair.interval, pair.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_the_difference_has_a_sign_and_turns_with_its_sides() -> None:
    a = losses(0)
    b = a + np.random.default_rng(1).normal(0.2, 0.3, size=a.shape)
    there, back = compare_losses(a, b), compare_losses(b, a)
    assert there.difference == pytest.approx(a.mean() - b.mean()) == pytest.approx(-back.difference)
    assert there.interval[1] < 0 < back.interval[0]
    assert there.p_value < 0.01
    half = (there.interval[1] - there.interval[0]) / 2
    assert half == pytest.approx(1.96 * (a - b).std() / 20, rel=0.1)


def test_groups_and_seeds_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(40), 10)
    a = losses(3)
    b = a + 0.1 + np.repeat(rng.normal(0, 0.3, 40), 10)
    alone, grouped = compare_losses(a, b), compare_losses(a, b, groups=groups)
    assert grouped.interval[1] - grouped.interval[0] > 2 * (alone.interval[1] - alone.interval[0])
    trainings = b + np.array([[-0.2], [0.0], [0.2]])
    several = compare_losses(a, trainings)
    assert several.interval[1] - several.interval[0] > alone.interval[1] - alone.interval[0]


def test_no_difference_is_found_where_there_is_none() -> None:
    found = [
        compare_losses(losses(n, 100), losses(n + 1000, 100), seed=n).p_value for n in range(60)
    ]
    assert np.mean(np.array(found) <= 0.05) < 0.15


def test_shapes_that_disagree_and_single_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        compare_losses(losses(0, 5), losses(0, 6))
    with pytest.raises(InputError, match="at least 2"):
        compare_losses(losses(0, 1), losses(1, 1))
