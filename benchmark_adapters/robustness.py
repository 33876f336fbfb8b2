"""DD-Ranking's two scores, on fractions: of labels, and of augmentation.

Source:
    DD-Ranking, arXiv 2505.13300, and PyPI ``ddranking`` 0.2.0, which computes them on percentages.
"""

from __future__ import annotations

from math import exp


def robust_score(recovery: float, improvement: float, weight: float) -> float:
    """Label-robust score, LRS: ``(e^a - e^-1) / (e - e^-1)`` with ``a = weight IOR - (1 - weight) HLR``; from 0 to 1.

    Args:
        recovery: HLR, the accuracy of the whole set less that of the synthetic one, a fraction.
        improvement: IOR, the accuracy of the synthetic set less that of random real images, a fraction.
        weight: Of IOR, from 0 to 1.
    """
    return _scaled(weight * improvement - (1 - weight) * recovery)


def augmentation_score(augmented: float, plain: float, weight: float) -> float:
    """Augmentation-robust score, ARS: ``(e^b - e^-1) / (e - e^-1)``, ``b = weight augmented + (1 - weight) plain``.

    Args:
        augmented: IOR where networks are trained with augmentation, a fraction.
        plain: The same without any.
        weight: Of the first, from 0 to 1.
    """
    return _scaled(weight * augmented + (1 - weight) * plain)


def _scaled(exponent: float) -> float:
    return (exp(exponent) - exp(-1)) / (exp(1) - exp(-1))
