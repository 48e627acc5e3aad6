"""Take out of label probabilities what a prompted model says whatever it reads."""

import numpy as np

from llabel.task import Probabilities

_LEAST = 1e-12  # a prior of zero stands for a class that no text ever got


def prior_corrected(proba: Probabilities, prior: Probabilities) -> Probabilities:
    """p'_c ∝ p_c / prior_c: contextual calibration (Zhao et al. 2021, arXiv 2102.09690).

    That is their equations 1 and 2 with W = diag(prior)⁻¹ and b = 0, where the prior is the mean
    over unlabelled texts of the task instead of content-free ones ("N/A"), as Batch Calibration
    estimates it (Zhou et al. 2023, arXiv 2309.17249). It assumes that the classes are about
    equally frequent: a model that is right about a rare class being rare is led astray.

    Args:
        proba: (n, n_classes) in [0, 1]; rows sum to 1.
        prior: (n_classes,) in [0, 1], sums to 1; a uniform one changes nothing.

    Returns:
        (n, n_classes); rows sum to 1.
    """
    weighted = proba / np.maximum(prior, _LEAST)
    corrected: Probabilities = weighted / weighted.sum(axis=1, keepdims=True)
    return corrected
