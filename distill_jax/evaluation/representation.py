"""How alike two networks represent the same examples: linear centred kernel alignment."""

import numpy as np


def linear_cka(one: np.ndarray, other: np.ndarray) -> float:
    """Linear CKA of two sets of features of the same examples.

    ||Y'X||_F^2 / (||X'X||_F ||Y'Y||_F) with the columns of X and Y centred. It is computed from the
    Gram matrices [N, N], which costs N^2 (P + Q) whatever the widths.

    Args:
      one: X, [N, P].
      other: Y, [N, Q].

    Returns:
      In [0, 1]; NaN where one of them does not vary over the examples.

    Reference:
      Kornblith, Norouzi, Lee and Hinton 2019, "Similarity of neural network representations
      revisited", section 3.
    """
    grams = []
    for features in (one, other):
        features = np.asarray(features, np.float64).reshape(len(features), -1)
        centred = features - features.mean(axis=0)
        grams.append(centred @ centred.T)
    x, y = grams
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.sum(x * y) / norm) if norm > 0 else float("nan")
