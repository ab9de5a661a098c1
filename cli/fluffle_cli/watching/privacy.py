"""How much of their promise of differential privacy the workers have spent. Pure."""

from dataclasses import dataclass
from typing import Final

from fluffle.privacy.plan import PrivacyPlan, PrivacyState
from fluffle_cli.watching.view import Version
from fluffle_cli.words import count

UNIT: Final = "one worker with all its updates"
NOT_COVERED: Final = "who sends updates, and when"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpentPrivacy:
    """What was promised to each worker, and what is spent of it.

    `spent` is the epsilon of the worker with the most updates in the model, and so that of the federation.
    `steps` is the number of sums that were shown, and `workers_spent` of the `workers` in the model have sent
    all the updates that they may.
    """

    mechanism: str
    epsilon: float
    delta: float
    clip: float
    is_adaptive: bool
    updates: int
    separation: int
    noise: float
    bands: int
    spent: float
    most_updates: int
    steps: int
    workers: int
    workers_spent: int
    promise: str

    @property
    def in_words(self) -> str:
        """Return it in a line."""
        clip = f", clip {self.clip:.3g}" if self.is_adaptive else ""
        return (
            f"privacy: epsilon {self.spent:.3g} of {self.epsilon:g} spent (delta {self.delta:g}), at most "
            f"{self.most_updates} of {count(self.updates, 'update')} of a worker, "
            f"{self.workers_spent} of {count(self.workers, 'worker')} done, mechanism {self.mechanism}{clip}"
        )


@dataclass(frozen=True, slots=True)
class SpentByWorker:
    """What one worker has spent."""

    name: str
    updates: int
    epsilon: float


def spent_by_worker(version: Version) -> list[SpentByWorker]:
    """Return what each worker with an update in the model has spent, the most first."""
    plan, state = version.plan.privacy, version.privacy
    if plan is None or state is None:
        return []
    found = [
        SpentByWorker(name, each.updates, plan.epsilon_after(each.updates))
        for name, each in state.participations.items()
        if each.updates
    ]
    return sorted(found, key=lambda each: (-each.updates, each.name))


def spent_privacy(version: Version | None) -> SpentPrivacy | None:
    """Return what a version says of differential privacy; None without it."""
    plan = version.plan.privacy if version else None
    if version is None or version.privacy is None or plan is None:
        return None
    state = version.privacy
    known = [name for name, each in state.participations.items() if each.updates]
    return SpentPrivacy(
        mechanism=plan.mechanism,
        epsilon=plan.epsilon,
        delta=plan.delta,
        clip=state.clip_of(plan),
        is_adaptive=plan.count_std is not None,
        updates=plan.updates,
        separation=plan.separation,
        noise=plan.std_at(state.clip_of(plan)),
        bands=plan.bands,
        spent=plan.epsilon_after(state.most_updates),
        most_updates=state.most_updates,
        steps=state.steps,
        workers=len(known),
        workers_spent=sum(state.is_spent(name, plan) for name in known),
        promise=plan.promise,
    )


def about_privacy(plan: PrivacyPlan, state: PrivacyState) -> dict[str, str]:
    """Return what a file with a model says of the privacy of the workers that it was made of."""
    clip = f"{'adaptive ' if plan.count_std else ''}clip {state.clip_of(plan):g}"
    return {
        "privacy": f"epsilon {plan.epsilon_after(state.most_updates):.4g}, delta {plan.delta:g}",
        "privacy.promised": f"epsilon {plan.epsilon:g}, delta {plan.delta:g}",
        "privacy.unit": UNIT,
        "privacy.mechanism": f"{plan.mechanism}, {plan.noise_in_words}, {clip}",
        "privacy.not_covered": NOT_COVERED,
    }
