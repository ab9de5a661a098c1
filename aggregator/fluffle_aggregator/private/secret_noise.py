"""The noise that follows from the secret file, and that the next leader makes again from the record."""

from fluffle.privacy.grid import Grid, Steps
from fluffle.privacy.noise import NoiseSecret, NoiseSequence, standard_normals
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
        self._plan = plan
        self._drawn, self._secret, self._federation = drawn, secret, federation
        past = [
            secret.key(federation, bytes.fromhex(each.drawn), Rank(each.term, each.version))
            for each in state.last
        ]
        self._sequence = NoiseSequence(
            plan.noise.coefficients,
            plan.std_at(grid.clip) / grid.step,
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

    def count_normal(self, rank: Rank) -> float:
        """See Noise."""
        return float(
            standard_normals(self._secret.key(self._federation, self._drawn, rank, "share"), 0, 1)[0]
        )

    def with_grid(self, grid: Grid) -> "SecretNoise":
        """See Noise."""
        anew = PrivacyState(commitment=self._secret.commitment)
        return SecretNoise(self._secret, self._federation, self._plan, anew, grid, drawn=self._drawn)
