import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llabel.ladder.contract import FitSettings
from llabel.ladder.majority import MajorityRung, class_shares
from llabel.metrics import majority_accuracy
from tiny_tasks import make_task


def test_one_row_more_for_every_class():
    shares = class_shares(np.array([0, 0, 2]), 3)
    np.testing.assert_allclose(shares, [3 / 6, 1 / 6, 2 / 6])


@given(st.lists(st.integers(0, 4), max_size=30))
def test_shares_keep_the_order_of_the_counts(labels: list[int]):
    y = np.array(labels, dtype=np.int64)
    shares, counts = class_shares(y, 5), np.bincount(y, minlength=5)
    assert shares.sum() == pytest.approx(1)
    assert (shares > 0).all()
    assert shares.argmax() == counts.argmax()


@pytest.mark.parametrize("refit", [False, True])
def test_its_answer_is_the_majority(refit: bool):
    task = make_task(("a", "b", "c"), train=10, validation=8)
    rung = MajorityRung(FitSettings(refit=refit)).fit(task)
    known = np.concatenate([task.train.y, task.validation.y]) if refit else task.train.y
    predicted = rung.predict_proba(task.test.texts).argmax(axis=1)
    assert (predicted == task.test.y).mean() == majority_accuracy(known, task.test.y)
    np.testing.assert_array_equal(rung.shares_, class_shares(known, 3))
