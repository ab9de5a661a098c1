"""The noise that follows from the secret file, and that the next leader makes again from the record."""

from fluffle.privacy.grid import Grid, Steps
from fluffle.privacy.noise import NoiseSecret, NoiseSequence
from fluffle.privacy.plan import PrivacyPlan, PrivacyState
from fluffle.record import Rank


class SecretNoise:
    """The noise of one leader, see `fluffle.privacy.noise`."""

    def __init__(
        self,
        secret: NoiseSecret,
        federation: str,
        plan: PrivacyPlan,
        state: PrivacyState,
        grid: Grid,
        *,
        drawn: bytes,
    ) -> None:
        """Go on from what a record says has been released; this leader has `drawn` so many random bytes."""
        self._drawn, self._secret, self._federation = drawn, secret, federation
        past = [
            secret.key(federation, bytes.fromhex(each.drawn), Rank(each.term, each.version))
            for each in state.last
        ]
        self._sequence = NoiseSequence(
            plan.noise.coefficients,
            plan.std / grid.step,
            grid.size,
            past=past,
            kept=plan.noise.kept_sums(grid.size),
        )

    @property
    def drawn(self) -> str:
        """See Noise."""
        return self._drawn.hex()

    def add_next(self, rank: Rank, total: Steps) -> None:
        """See Noise."""
        self._sequence.add_next(self._secret.key(self._federation, self._drawn, rank), total)
