"""UniMax: as uniform as it can be while no domain is read more than N times (Chung et al., arXiv 2304.09151).

Algorithm 1: from the smallest domain to the largest, each gets its equal share of the budget that is left, but no more
than N passes over it; what it can't take goes to the larger ones.
"""

import numpy as np


def weights(sizes, budget: float, passes: float = 4.0) -> np.ndarray:
    """The share of each domain [domains]. sizes: tokens of each; budget: C, tokens of the training; passes: N.

    Raises ValueError where even N passes over everything are fewer than the budget: then tokens would be missing.
    """
    sizes = np.asarray(sizes, float)
    if sizes.ndim != 1 or not len(sizes) or (sizes <= 0).any() or not np.isfinite(sizes).all():
        raise ValueError(f"sizes={sizes.tolist()}; a positive number for each domain is needed; leave empty ones out.")
    if not (passes > 0 and 0 < budget <= passes * sizes.sum() * (1 + 1e-9)):
        raise ValueError(
            f"{passes:g} passes over {sizes.sum():,.0f} tokens for a budget of {budget:,.0f}; up to "
            f"{passes * sizes.sum():,.0f} are allowed; allow more passes, or train for less."
        )
    left, found = float(budget), np.empty(len(sizes))
    for place, domain in enumerate(np.argsort(sizes, kind="stable")):
        share = left / (len(sizes) - place)
        found[domain] = min(share, passes * sizes[domain])
        left -= found[domain]
    return found / found.sum()
