"""Looking at a site's data: its profile, what its steps would do, and which labels are probably wrong."""

from dataclasses import dataclass

import numpy as np

from fluffle.errors import TaskError
from fluffle.task import Site
from fluffle_cli.data_check.drift import Drift
from fluffle_worker.data import DataSteps
from fluffle_worker.data.pipeline import StepReport, take_steps
from fluffle_worker.data.profile import Profile, profile_of
from fluffle_worker.data.rows import Rows
from fluffle_worker.data.suspicious import suspicious_labels

# So many rows at most, drawn at random, are looked at for wrong labels.
MOST_JUDGED = 5_000
# What the steps are changed by where only clean rows are wanted.
ONLY_CLEANED = {"labels": "keep", "balance": "none"}


@dataclass(frozen=True, slots=True)
class DataCheck:
    """What is known of a site's data.

    `suspicious` says in words how many labels are probably wrong, or why nobody looked. `reason` is why
    training would be senseless or is not possible, and empty when nothing speaks against it. `drift` is how
    far the data is from that of all sites, None where no survey is given.
    """

    task: str
    site: str
    profile: Profile
    steps: DataSteps
    has_own_steps: bool
    reports: tuple[StepReport, ...]
    suspicious: str
    reason: str
    drift: Drift | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against training on this data without making it senseless."""
        return tuple(each.warning for each in self.reports if each.warning)


def look_at(rows: Rows, steps: DataSteps | None, *, task: str, site: Site) -> DataCheck:
    """Look at the rows of a site; `steps` are the task's, if it has some."""
    named = f"site {site.index} of {site.count}"
    profile, taken = profile_of(rows), steps or DataSteps()
    reason, reports, suspicious = profile.senseless(), tuple[StepReport, ...](), "not looked at"
    if not reason:
        try:
            prepared = take_steps(rows, taken, site=site.index, share=site.validation, split_seed=site.seed)
            reports, plain = prepared.reports, taken.model_copy(update=ONLY_CLEANED)
            is_plain = plain == taken and not site.validation
            clean = prepared if is_plain else take_steps(rows, plain, site=site.index)
            suspicious = _suspicious(clean.train, taken.seed, site.index)
        except TaskError as error:
            reason = str(error)
    return DataCheck(task, named, profile, taken, steps is not None, reports, suspicious, reason)


def _suspicious(clean: Rows, seed: int, index: int) -> str:
    if clean.classes is None or not clean.is_table:
        return "not looked at: this needs one array of inputs and a class for each row"
    judged = clean
    if len(clean) > MOST_JUDGED:
        drawn = np.random.default_rng([seed, index]).choice(len(clean), MOST_JUDGED, replace=False)
        judged = clean.take(np.sort(drawn))
    try:
        labels = judged.labels("labels")
        found = suspicious_labels(judged.table("labels"), labels, seed)
    except TaskError as error:
        return f"not looked at: {error}"
    return f"{int(found.sum()):,} of {len(judged):,} rows have a label that is probably wrong"
