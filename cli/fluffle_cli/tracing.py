"""What has become of one update, from the records of the versions and the refused messages. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

from fluffle.errors import ConfigError
from fluffle.fields import is_name
from fluffle.model_stream import MissingRecords
from fluffle.record import Folded, ModelVersion, is_in_history
from fluffle.update import UpdateId
from fluffle_cli.rejected import RejectedMessage
from fluffle_cli.words import count

Outcome = Literal["applied", "absorbed", "applied-earlier", "rejected", "not-found"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Records:
    """The oldest and the newest record, and the first one that contains an update; None where there is none.

    `is_after_gap` says that records before `first` are missing: one of those may have contained the update.
    """

    oldest: ModelVersion | None = None
    newest: ModelVersion | None = None
    first: ModelVersion | None = None
    is_after_gap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Story:
    """All that is known of one update.

    `refused` are its copies in F.rejected. It is None where they could not be read: `not_looked` says why.
    """

    federation: str
    update: UpdateId
    records: Records
    refused: Sequence[RejectedMessage] | None
    not_looked: str
    updates_waiting: int

    @property
    def folded(self) -> Folded | None:
        """How the first version that contains the update folded it; None if its record does not say."""
        first = self.records.first
        return next((one for one in first.folded if one.id == self.update), None) if first else None

    @property
    def outcome(self) -> Outcome:
        """What has become of the update."""
        if self.records.first is None:
            return "rejected" if self.refused else "not-found"
        if self.folded:
            return "applied"
        return "applied-earlier" if self.records.is_after_gap else "absorbed"

    @property
    def absorbed_by(self) -> list[str]:
        """The other updates of its run in the first version that contains it, which was not folded itself."""
        folded = self.records.first.folded if self.records.first and self.outcome == "absorbed" else ()
        run = (self.update.worker, self.update.run)
        return [str(one.id) for one in folded if (one.id.worker, one.id.run) == run]

    def as_json(self) -> dict[str, object]:
        """Return plain types under keys that stay, with null for what is not known."""
        oldest, newest, folded = self.records.oldest, self.records.newest, self.folded
        # Nobody can say any more which of the versions whose records are missing contained it.
        first = None if self.outcome == "applied-earlier" else self.records.first
        refused_at = (one.published_at for one in self.refused or () if one.published_at)
        return {
            "update": str(self.update),
            "federation": self.federation,
            "outcome": self.outcome,
            "published_at": (folded.published_at or None) if folded else next(refused_at, None),
            "received_at": (folded.received_at or None) if folded else None,
            "base_version": folded and folded.base_version,
            "staleness": folded and folded.staleness,
            "weight": folded and folded.weight,
            "version": first and first.version,
            "term": first and first.term,
            "committed_at": (first.committed_at or None) if first else None,
            "updates_in_version": len(first.folded) if first else None,
            "sum": asdict(first.last_sum) if first and folded and first.last_sum else None,
            "absorbed_by": self.absorbed_by,
            "rejected": None if self.refused is None else [one.as_json() for one in self.refused],
            "updates_waiting": self.updates_waiting,
            "oldest_record": oldest and asdict(oldest.rank),
            "newest_record": newest and asdict(newest.rank),
            "finished": newest.finished if newest else "",
        }


def parse_update_id(text: str) -> UpdateId:
    """Read worker/run/sequence; ConfigError for anything else."""
    worker, run, sequence, *more = [*text.split("/"), "", ""]
    is_number = sequence.isascii() and sequence.isdecimal() and len(sequence) <= 18
    if any(more) or not (is_name(worker) and is_name(run) and is_number and int(sequence) >= 1):
        raise ConfigError(
            f"{text!r} is no update: give its id as the logs and RabbitMQ's message_id have it, "
            "worker/run/sequence, as in site-1/4f3a/12"
        )
    return UpdateId(worker, run, int(sequence))


def read_records(update: UpdateId, versions: Iterable[ModelVersion]) -> Records:
    """Look for an update in the records of versions, in the order in which they were published."""
    entries: list[tuple[ModelVersion, bool]] = []
    oldest: ModelVersion | None = None
    newest: ModelVersion | None = None
    contained = False
    missing = MissingRecords()
    for version in versions:
        is_after_gap = missing.are_before(version) or oldest is None
        oldest = oldest or version
        contains = update in version.applied
        if contains and not contained:
            entries.append((version, is_after_gap))
        contained, newest = contains, version
    for first, is_after_gap in reversed(entries):
        # A leader that was about to lose the lead may have published a version from which nobody went on.
        if newest and is_in_history(first.rank, newest.terms, newest.version):
            return Records(oldest=oldest, newest=newest, first=first, is_after_gap=is_after_gap)
    return Records(oldest=oldest, newest=newest)


def story_lines(story: Story) -> list[tuple[str, str]]:
    """Return labels and sentences for people: what happened to the update, when and how."""
    update, first, folded = story.update, story.records.first, story.folded
    lines = [("update", f"{update} of {story.federation}")]
    if first and folded:
        lines += _applied(update, first, folded)
    elif first and story.records.is_after_gap:
        is_oldest = first is story.records.oldest
        why = "the oldest record that is still there" if is_oldest else "in one whose record is missing"
        lines.append(("applied", f"before version {first.rank}, {why}"))
    elif first:
        by = " or ".join(story.absorbed_by) or "none that the record names"
        said = (
            f"in version {first.rank}, committed {_time(first.committed_at)}, but not folded itself: a later "
            f"update of its run took its place ({by}), or its number was given up as too old"
        )
        lines.append(("applied", said))
    for each in story.refused or ():
        if first is None:
            lines.append(("published", f"{_time(each.published_at)} by {update.worker}'s clock"))
        where = f"number {each.number} in {story.federation}.rejected"
        lines.append(("refused", f"{_time(each.at)} as {each.reason} ({where}): {each.detail}"))
    if story.outcome == "not-found":
        lines += [("found", each) for each in _not_found(story)]
    if story.refused is None:
        lines.append(("note", f"{story.federation}.rejected was not read: {story.not_looked}"))
    return lines


def _applied(update: UpdateId, version: ModelVersion, folded: Folded) -> list[tuple[str, str]]:
    published, received, committed = folded.published_at, folded.received_at, version.committed_at
    among = "alone" if len(version.folded) == 1 else f"one of {len(version.folded)} updates"
    how = f"trained from version {folded.base_version}, staleness {folded.staleness}"
    of = f" of {folded.batch_size}" if folded.batch_size else ""
    steps = count(folded.steps, "minibatch", "minibatches")
    trained = [("trained", f"{steps}{of} in {folded.train_s:.2f} s")] if folded.steps else []
    opened = version.last_sum
    secured = []
    if opened and opened.helpers:
        by, took = ", ".join(opened.helpers), f"{opened.opened_s:.3f} s after the sum was closed"
        secured = [
            ("closed", f"in sum {opened.number} of epoch {opened.epoch}, {opened.digest[:12]}…"),
            ("opened", f"by {by}, {took}: nobody saw this update"),
        ]
    return [
        *trained,
        ("published", f"{_time(published)} by {update.worker}'s clock"),
        ("received", f"{_time(received)} by the aggregator's clock{_later(published, received)}"),
        *secured,
        ("folded", f"with the weight {folded.weight:.4g}; {how}"),
        ("committed", f"{_time(committed)} in version {version.rank}, {among}{_later(received, committed)}"),
    ]


def _not_found(story: Story) -> list[str]:
    update, federation = story.update, story.federation
    oldest, newest = story.records.oldest, story.records.newest
    said = ["there is no version yet"]
    if oldest and newest:
        said = [f"in no version from {oldest.rank} to {newest.rank}, nor in what came before"]
    if story.refused is not None:
        said.append(f"not in {federation}.rejected either")
    if newest and newest.plan.secure and newest.plan.secure.epoch > 1:
        said.append(f"what was masked before epoch {newest.plan.secure.epoch} is forgotten, applied or not")
    if newest and update.worker not in newest.contributors:
        said.append(f"no version contains anything of worker {update.worker}")
    elif newest and (update.worker, update.run) not in newest.applied.runs:
        said.append(f"no version contains anything of the run {update.run} of {update.worker}")
    if story.updates_waiting:
        wait = count(story.updates_waiting, "message waits", "messages wait")
        said.append(f"{wait} in {federation}.updates, where an aggregator alone may look: it may be there")
    else:
        said.append(f"nothing waits in {federation}.updates; the leader may hold it until its next commit")
    return [
        *said,
        f"otherwise it was never sent: it is still in the spool of {update.worker}, whose log will say "
        "`update published` once it is sent",
    ]


def _time(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "milliseconds") if seconds else "at an unknown time"


def _later(before: float, after: float) -> str:
    # Two machines' clocks need not agree.
    return f", {after - before:.3f} s later" if 0 < before <= after else ""
