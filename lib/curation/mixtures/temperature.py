"""Sampling by temperature: p_i ∝ n_i^(1/T) (Arivazhagan et al., arXiv 1907.05019, section 4).

T = 1 is the natural mixture, large T the uniform one; multilingual BERT had 1/T = 0.7, mT5 0.3.
"""

import numpy as np


def weights(sizes, temperature: float) -> np.ndarray:
    """The share of each domain [domains]. sizes: tokens (or bytes) of each. Raises ValueError for what has no share."""
    sizes = np.asarray(sizes, float)
    if sizes.ndim != 1 or not len(sizes) or (sizes <= 0).any() or not np.isfinite(sizes).all():
        raise ValueError(f"sizes={sizes.tolist()}; a positive number for each domain is needed; leave empty ones out.")
    if not temperature > 0:
        raise ValueError(
            f"temperature={temperature!r}; above 0 is allowed, 1 for natural, inf for uniform; 5 is usual."
        )
    found = np.exp(np.log(sizes / sizes.max()) / temperature)
    return found / found.sum()
