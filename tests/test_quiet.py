import warnings

import pytest

from llabel.quiet import quiet_libraries


@pytest.mark.parametrize("error", [None, KeyError("inside")])
def test_libraries_are_quiet_and_as_before_afterwards(error: Exception | None) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), list(warnings.filters)
    try:
        with quiet_libraries():
            assert logging.get_verbosity() == logging.ERROR
            assert not logging.is_progress_bar_enabled()
            if error:
                raise error
    except KeyError:
        pass
    after = logging.get_verbosity(), logging.is_progress_bar_enabled(), list(warnings.filters)
    assert after == before
