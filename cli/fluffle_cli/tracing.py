"""What has become of one update, from the records of the versions and the refused messages. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

from fluffle.errors import ConfigError
from fluffle.fields import is_name
from fluffle.model_stream import MissingRecords
from fluffle.record import Folded, ModelVersion, Rank, is_in_history
from fluffle.update import UpdateId
from fluffle_cli.rejected import RejectedMessage

Outcome = Literal["applied", "absorbed", "applied-earlier", "rejected", "not-found"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The version that was the first to contain an update; `folded` is None when it does not say how.

    `siblings` are the other updates of its run in that version. `is_after_gap` says that records before this
    one are not known, so that one of those may have contained the update.
    """

    rank: Rank
    committed_at: float
    folded: Folded | None
    updates: int
    siblings: tuple[UpdateId, ...]
    is_after_gap: bool

    @classmethod
    def of(cls, version: ModelVersion, update: UpdateId, *, is_after_gap: bool) -> "Entry":
        """Read what a version's record says of an update."""
        run = (update.worker, update.run)
        mates = [one.id for one in version.folded if (one.id.worker, one.id.run) == run and one.id != update]
        return cls(
            rank=version.rank,
            committed_at=version.committed_at,
            folded=next((one for one in version.folded if one.id == update), None),
            updates=len(version.folded),
            siblings=tuple(mates),
            is_after_gap=is_after_gap,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What the stream of records still says of an update; ranks are None when it is empty."""

    oldest: Rank | None = None
    newest: Rank | None = None
    finished: str = ""
    entry: Entry | None = None
    knows_worker: bool = False
    knows_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
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
    def outcome(self) -> Outcome:
        """What has become of the update."""
        entry = self.records.entry
        if entry is not None and entry.folded is not None:
            return "applied"
        if entry is not None:
            return "applied-earlier" if entry.is_after_gap else "absorbed"
        return "rejected" if self.refused else "not-found"

    def as_json(self) -> dict[str, object]:
        """Return plain types under keys that stay, with null for what is not known."""
        records = self.records
        # In which of the versions whose records are not there it was, nobody can tell any more.
        entry = None if self.outcome == "applied-earlier" else records.entry
        folded = entry and entry.folded
        return {
            "update": str(self.update),
            "federation": self.federation,
            "outcome": self.outcome,
            "published_at": _known(folded.published_at) if folded else self._published_at,
            "received_at": folded and _known(folded.received_at),
            "base_version": folded and folded.base_version,
            "staleness": folded and folded.staleness,
            "weight": folded and folded.weight,
            "version": entry and entry.rank.version,
            "term": entry and entry.rank.term,
            "committed_at": entry and _known(entry.committed_at),
            "updates_in_version": entry and entry.updates,
            "absorbed_by": [str(one) for one in entry.siblings] if entry and not folded else [],
            "rejected": None if self.refused is None else [one.as_json() for one in self.refused],
            "updates_waiting": self.updates_waiting,
            "oldest_record": records.oldest and asdict(records.oldest),
            "newest_record": records.newest and asdict(records.newest),
            "finished": records.finished,
        }

    @property
    def _published_at(self) -> float | None:
        return next((one.published_at for one in self.refused or () if one.published_at), None)


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
    entries: list[Entry] = []
    oldest: Rank | None = None
    newest: ModelVersion | None = None
    contained = False
    missing = MissingRecords()
    for version in versions:
        is_after_gap = missing.are_before(version) or oldest is None
        oldest = oldest or version.rank
        contains = update in version.applied
        if contains and not contained:
            entries.append(Entry.of(version, update, is_after_gap=is_after_gap))
        contained, newest = contains, version
    if newest is None:
        return Records()
    # A leader that was about to lose the lead may have published a version from which nobody went on.
    entries = [each for each in entries if is_in_history(each.rank, newest.terms, newest.version)]
    return Records(
        oldest=oldest,
        newest=newest.rank,
        finished=newest.finished,
        entry=entries[-1] if entries else None,
        knows_worker=update.worker in newest.contributors,
        knows_run=(update.worker, update.run) in newest.applied.runs,
    )


def story_lines(story: Story) -> list[tuple[str, str]]:
    """Return labels and sentences for people: what happened to the update, when and how."""
    entry, records = story.records.entry, story.records
    lines: list[tuple[str, str]] = [("update", f"{story.update} of {story.federation}")]
    if entry is not None and entry.folded is not None:
        lines += _applied(story.update, entry, entry.folded)
    elif story.outcome == "applied-earlier":
        is_oldest = entry is not None and entry.rank == records.oldest
        why = "the oldest record that is still there" if is_oldest else "in one whose record is missing"
        lines.append(("applied", f"before version {entry and entry.rank}, {why}"))
    elif entry is not None:
        lines.append(("applied", _absorbed(entry)))
    for each in story.refused or ():
        if entry is None:
            lines.append(("published", f"{_time(each.published_at)} by {story.update.worker}'s clock"))
        where = f"number {each.number} in {story.federation}.rejected"
        lines.append(("refused", f"{_time(each.at)} as {each.reason} ({where}): {each.detail}"))
    if story.outcome == "not-found":
        lines += [("found", each) for each in _not_found(story, records)]
    if story.refused is None:
        lines.append(("note", f"{story.federation}.rejected was not read: {story.not_looked}"))
    return lines


def _applied(update: UpdateId, entry: Entry, folded: Folded) -> list[tuple[str, str]]:
    published, received = _known(folded.published_at), _known(folded.received_at)
    among = "alone" if entry.updates == 1 else f"one of {entry.updates} updates"
    return [
        ("published", f"{_time(published)} by {update.worker}'s clock"),
        ("received", f"{_time(received)} by the aggregator's clock{_later(published, received)}"),
        (
            "folded",
            f"with the weight {folded.weight:.4g}; trained from version {folded.base_version}, "
            f"staleness {folded.staleness}",
        ),
        (
            "committed",
            f"{_time(_known(entry.committed_at))} in version {entry.rank}, {among}"
            f"{_later(received, _known(entry.committed_at))}",
        ),
    ]


def _absorbed(entry: Entry) -> str:
    by = " or ".join(str(one) for one in entry.siblings) or "none that the record names"
    return (
        f"in version {entry.rank}, committed {_time(_known(entry.committed_at))}, but not folded itself: a "
        f"later update of its run took its place ({by}), or its number was given up as too old"
    )


def _not_found(story: Story, records: Records) -> list[str]:
    update = story.update
    if records.newest is None:
        said = ["there is no version yet"]
    else:
        said = [f"in no version from {records.oldest} to {records.newest}, nor in what came before"]
    if story.refused is not None:
        said.append(f"not in {story.federation}.rejected either")
    if records.newest is not None and not records.knows_worker:
        said.append(f"no version contains anything of worker {update.worker}")
    elif records.newest is not None and not records.knows_run:
        said.append(f"no version contains anything of the run {update.run} of {update.worker}")
    if story.updates_waiting:
        waiting = "1 update waits" if story.updates_waiting == 1 else f"{story.updates_waiting} updates wait"
        said.append(
            f"{waiting} in {story.federation}.updates, where an aggregator alone may look: it may be there"
        )
    else:
        said.append(
            f"nothing waits in {story.federation}.updates; the leader may hold it until its next commit"
        )
    said.append(
        f"otherwise it was never sent: it is still in the spool of {update.worker}, whose log will say "
        "`update published` once it is sent"
    )
    return said


def _known(seconds: float) -> float | None:
    return seconds or None


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "at an unknown time"
    return datetime.fromtimestamp(seconds).isoformat(" ", "milliseconds")


def _later(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    # Two machines' clocks need not agree.
    return f", {after - before:.3f} s later" if after >= before else ""
