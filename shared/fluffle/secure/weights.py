"""Integer weights by staleness, which worker, aggregator and helpers all compute for themselves. Pure."""

import math
from typing import Final

# Weights that lie further apart would let an aggregator read single updates off the digits of a sum.
MOST_APART: Final = 8
MOST_FACTOR: Final = 64


def factor_of(staleness: int, greatest: int) -> int:
    """Return the weight of an update that is so many versions late, from `greatest` down to an eighth of it.

    It is greatest / sqrt(1 + staleness), rounded: FedBuff's discount (Nguyen et al. 2022, arXiv 2106.06639,
    section 5), here in integers, so that masks can be weighted alike.
    """
    return max(-(-greatest // MOST_APART), round(greatest / math.sqrt(1 + staleness)))
