"""Differential privacy in the demo: the numbers that suit few workers, and the secret of the noise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, Field

from fluffle.errors import ConfigError
from fluffle.privacy.plan import PrivacyPlan
from fluffle.privacy.promise import NoiseKind, PrivacyTarget
from fluffle_aggregator.choices import readable_by
from fluffle_aggregator.private.settings import as_text, parse_clip
from fluffle_cli.watching.view import Version

# With fewer workers the noise of an epsilon of 8 hides what 4,810 parameters learn.
USUAL_WORKERS: Final = 24
# Each of them takes the memory of numpy alone: so many with Keras would take 10 GB.
USUAL_TASK: Final = "fluffle_cli.demo.digits_in_numpy:task"
USUAL_TARGET: Final = "accuracy>=0.75"
USUAL_CLIP: Final = "0.3"
USUAL_UPDATES: Final = 20
USUAL_SEPARATION: Final = 2
# Noise makes single versions worse than their average.
AVERAGE: Final = 0.9
# So long nothing comes once all have sent theirs, until the demo ends; the slowest worker takes 2 s.
BUFFER_TIMEOUT_S: Final = 8.0


class DemoPrivacySettings(BaseModel):
    """What the demo is told of differential privacy."""

    dp_epsilon: float | None = Field(
        None,
        description="Train with differential privacy, so that each worker has this epsilon for the whole "
        f"run: 8 is usual. Then there are {USUAL_WORKERS} workers without Keras, and the target is lower. "
        "The demo also ends well when all workers have spent their privacy, unless a target is given.",
    )
    dp_delta: float = Field(1e-5, description="The delta of each worker.")
    dp_clip: Annotated[str, BeforeValidator(as_text), readable_by(parse_clip)] = Field(
        USUAL_CLIP,
        description="L2 norm to which each update is clipped; or adaptive[:START], with plain noise.",
    )
    dp_max_updates: int = Field(USUAL_UPDATES, description="Most updates of one worker in the run.")
    dp_separation: int | None = Field(
        None,
        description="Fewest sums from one update of a worker to its next. Default: "
        f"{USUAL_SEPARATION}. The buffer is then as large as the workers can fill.",
    )

    dp_noise: NoiseKind = Field(
        "correlated",
        description="Correlated noise adds up to less in the model than plain noise of the same epsilon.",
    )

    def require_epsilon(self) -> None:
        """Raise ConfigError for settings that have no effect without an epsilon."""
        idle = sorted(self.model_fields_set & (set(DemoPrivacySettings.model_fields) - {"dp_epsilon"}))
        if idle and self.dp_epsilon is None:
            raise ConfigError(f"--{idle[0].replace('_', '-')} has no effect without --dp-epsilon: give both")

    def separation_of(self, workers: int) -> int:
        """Return the separation for so many workers."""
        return min(USUAL_SEPARATION, workers) if self.dp_separation is None else self.dp_separation

    def privacy_plan(self, workers: int) -> PrivacyPlan | None:
        """Return what each of so many workers is promised; None without an epsilon."""
        if self.dp_epsilon is None:
            return None
        clip, is_adaptive = parse_clip(self.dp_clip)
        target = PrivacyTarget(
            epsilon=self.dp_epsilon,
            delta=self.dp_delta,
            clip=clip,
            adaptive=is_adaptive,
            updates=self.dp_max_updates,
            separation=self.separation_of(workers),
            correlated=self.dp_noise == "correlated",
        )
        return PrivacyPlan.keeping(target)

    def of_aggregator(self, workers: int, secret: Path | None) -> Mapping[str, object]:
        """Return the settings of an aggregator; none without an epsilon."""
        if self.dp_epsilon is None:
            return {}
        return {
            "dp": "central",
            "dp_epsilon": self.dp_epsilon,
            "dp_delta": self.dp_delta,
            "dp_clip": self.dp_clip,
            "dp_max_updates": self.dp_max_updates,
            "dp_separation": self.separation_of(workers),
            "dp_noise": self.dp_noise,
            "dp_secret": secret,
            "average_versions": AVERAGE,
            "buffer_timeout": BUFFER_TIMEOUT_S,
        }


def has_spent_all(last: Version) -> bool:
    """Tell whether a federation ended since each worker had sent all updates that its privacy allows."""
    plan = last.plan.privacy
    return bool(plan and last.privacy and last.privacy.are_all_spent(plan))
