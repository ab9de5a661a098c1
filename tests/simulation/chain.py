"""The records of a federation, each held against what an independent replay of its updates gives."""

import functools
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from simulation.configs import FEWEST_ROWS

from fluffle.framing import BIN32_PREFIX_BYTES
from fluffle.model import Vector, no_values
from fluffle.record import ModelVersion, Rank
from fluffle.record_wire import decode_version, version_header
from fluffle.sites import SiteEvaluation
from fluffle.survey.messages import SiteStatistics
from fluffle.survey.result import result_of
from fluffle.survey.statistics import DataStatistics
from fluffle.update import UpdateId, WeightUpdate
from fluffle_aggregator.averaging import decay_at, move_average
from fluffle_aggregator.strategies.strategy import Strategy, UpdateFacts

ROUNDING_S = 1e-6


@dataclass(frozen=True, slots=True)
class Model:
    """The model after a record's updates, by the replay."""

    vector: Vector
    # The vector itself where versions are not averaged.
    average: Vector
    moments: Mapping[str, Vector]
    version: int
    # Of each worker's last update.
    examples: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Link:
    """One record; the updates up to it, and the ranks that an update after it may have started from."""

    record: ModelVersion
    parent: "Link | None"
    ids: frozenset[UpdateId]
    bases: frozenset[Rank]
    model: Model

    def descends_from(self, other: "Link") -> bool:
        """Tell whether the other is this record, or one before it."""
        link: Link | None = self
        while link is not None and link is not other:
            link = link.parent
        return link is other


@dataclass(slots=True)
class Chain:
    """Every record that was ever published, by its bytes.

    `strategies` are known by what a record calls them, `sent` has all that came under an update's id,
    `reports` what each site has evaluated, and `answers` what the sites have told surveys.
    """

    strategies: Mapping[str, Strategy]
    sent: Mapping[UpdateId, Sequence[WeightUpdate]]
    reports: Mapping[str, Sequence[SiteEvaluation]]
    answers: Mapping[bytes, SiteStatistics]
    links: dict[bytes, Link] = field(default_factory=dict)
    by_digest: dict[str, Link] = field(default_factory=dict)
    ranks: set[Rank] = field(default_factory=set)
    moments_may_be_gone: bool = False

    def add(self, body: bytes) -> Link:
        """Take in a record; AssertionError when it is not what it should be."""
        record = decode_version(body)
        if record.parent:
            assert record.parent in self.by_digest, f"nobody knows the parent of {record.rank}"
            link = self._after(self.by_digest[record.parent], record)
        else:
            assert record.version == 0, f"{record.rank} has no parent"
            model = Model(record.vector, record.vector, {}, 0, {})
            link = Link(record, None, frozenset(), frozenset([record.rank]), model)
        # Two leaders may both begin the federation, with the same version 0.
        assert record.rank not in self.ranks or record.version == 0, f"{record.rank} is there twice"
        self.ranks.add(record.rank)
        header_bytes = len(body) - BIN32_PREFIX_BYTES - record.vector.nbytes - record.average.nbytes
        self.by_digest[hashlib.sha256(body[:header_bytes]).hexdigest()] = self.links[body] = link
        return link

    def add_copy(self, body: bytes) -> Link:
        """Take in a copy of a record; AssertionError when it says anything else than the record."""
        copy = decode_version(body)
        assert copy.copy_of in self.by_digest, f"nobody knows the record that {copy.rank} is a copy of"
        link = self.links[body] = self.by_digest[copy.copy_of]
        exact = link.record
        rounding = np.abs(exact.vector).max() / 100
        assert np.abs(copy.vector - exact.vector).max() <= rounding, f"{copy.rank} is rounded too much"
        # Compared as they travel: two arrays are not equal, but equal element by element.
        assert version_header(copy) == version_header(exact), (
            f"{copy.rank} says another thing than its record"
        )
        return link

    def _after(self, parent: Link, record: ModelVersion) -> Link:
        before = parent.record
        assert record.rank > before.rank, f"{record.rank} goes on from {before.rank}"
        assert record.version >= before.version, f"{record.rank} goes on from {before.rank}"
        began = () if record.term == before.term else (Rank(record.term, before.version),)
        assert record.terms == (*before.terms, *began), f"{record.rank} has the terms {record.terms}"
        assert record.elapsed_s >= before.elapsed_s - ROUNDING_S, f"time goes backwards at {record.rank}"
        assert record.rejected >= before.rejected, f"{record.rank} has forgotten what was refused"
        folded = [one.id for one in record.folded]
        assert len(set(folded)) == len(folded), f"{record.rank} folds an update twice: {folded}"
        assert parent.ids.isdisjoint(folded), f"{record.rank} folds what was folded before: {folded}"
        ids = parent.ids | frozenset(folded)
        _require_remembered(record, ids)
        self._require_reported(record, before)
        self._require_surveyed(record, before)
        bases = parent.bases | {Rank(record.term, each) for each in range(before.version, record.version + 1)}
        return Link(record, parent, ids, bases, self._replay(parent, record, bases))

    def _require_reported(self, record: ModelVersion, before: ModelVersion) -> None:
        """Hold what the record has of each site against what the site has sent, and what was there before."""
        for site, report in record.sites.items():
            said = (report.term, report.version, report.examples, report.metrics)
            sent = [(one.term, one.version, one.examples, one.metrics) for one in self.reports.get(site, ())]
            assert said in sent, f"{record.rank} has an evaluation that {site} never sent: {said}"
            if older := before.sites.get(site):
                assert said[:2] >= (older.term, older.version), f"{record.rank} has an older one of {site}"

    def _require_surveyed(self, record: ModelVersion, before: ModelVersion) -> None:
        """Hold the survey of a record against what was there before, and what the sites have sent."""
        now, then = record.survey, before.survey
        if then is None or (now is None and not then.answered):
            # It never began, or nobody asks for it any more.
            assert now is None, f"{record.rank} begins a survey"
            return
        assert now is not None, f"{record.rank} has forgotten the survey"
        if then.result is not None:
            assert now == then, f"{record.rank} changes a survey that has ended"
            return
        sent = {each.worker: each.statistics for each in self.answers.values()}
        assert set(now.answered) <= sent.keys(), f"{record.rank} has answers that nobody sent: {now.answered}"
        assert len(set(now.answered)) == len(now.answered), f"{record.rank} counts a site twice"
        if now.attempt == then.attempt:
            kept = now.answered[: len(then.answered)]
            assert kept == then.answered, f"{record.rank} has forgotten the answers of {then.answered}"
        else:
            assert self.moments_may_be_gone, f"{record.rank} begins the survey anew"
        if now.result is not None:
            merged = functools.reduce(DataStatistics.merged, (sent[each] for each in now.answered))
            pooled = result_of(merged, sites=len(now.answered), min_count=FEWEST_ROWS)
            assert now.result == pooled, f"{record.rank} has another result than its sites' data gives"

    def _replay(self, parent: Link, record: ModelVersion, bases: frozenset[Rank]) -> Model:
        # What came under one id may differ when the first of it was refused.
        choices = [
            [sent for sent in self.sent[one.id] if sent.base_version == one.base_version]
            for one in record.folded
        ]
        examples = {name: one.examples for name, one in record.contributors.items() if one.updates}
        strategy = self.strategies[record.strategy]
        starts = [parent.model.moments, *([{}] if self.moments_may_be_gone else [])]
        for updates, moments in itertools.product(itertools.product(*choices), starts):
            if not all(Rank(each.base_term, each.base_version) in bases for each in updates):
                continue
            before = replace(parent.model, moments=moments)
            model = _replayed(before, record, updates, strategy)
            if model.version == before.version and _needs_a_newer_version(record, parent.record):
                model = replace(model, version=model.version + 1)
            if (model.vector.tobytes(), model.examples) == (record.vector.tobytes(), examples):
                assert model.version == record.version, f"{record.rank} should be version {model.version}"
                average = model.average if record.average_decay else no_values()
                assert record.average.tobytes() == average.tobytes(), f"{record.rank} has another average"
                _require_weighed(record, updates, before=parent.record.version, strategy=strategy)
                return model
        raise AssertionError(f"the model of {record.rank} is not what its updates give: {record.folded}")


def _require_remembered(record: ModelVersion, ids: frozenset[UpdateId]) -> None:
    """Hold what the record remembers of the updates in it against the updates along its parents."""
    remembered = sum(
        log.highest - sum(last - first + 1 for first, last in log.gaps)
        for log in record.applied.runs.values()
    )
    assert all(one in record.applied for one in ids), f"{record.rank} has forgotten an update"
    assert remembered == len(ids), f"{record.rank} remembers {remembered} updates, not {len(ids)}"
    counted = {name: one.updates for name, one in record.contributors.items()}
    assert sum(counted.values()) == len(ids), f"{record.rank} counts {counted}, not {len(ids)} updates"


def _replayed(
    before: Model, record: ModelVersion, updates: Sequence[WeightUpdate], strategy: Strategy
) -> Model:
    """Fold the updates one after the other into the parent's model, as somebody who never crashes."""
    vector, average, version = before.vector.copy(), before.average.copy(), before.version
    moments: Mapping[str, Vector] = {name: one.copy() for name, one in before.moments.items()}
    if set(moments) != set(strategy.moment_names):
        moments = strategy.starting_moments(vector.size)
    held = strategy.rule.zero()
    for one, update in zip(record.folded, updates, strict=True):
        held = held.adding(update.vector, strategy.weigh(UpdateFacts(one.staleness, update.examples)))
        if held.totals.count == strategy.buffer_size:
            strategy.step(vector, held, moments)
            move_average(average, vector, decay_at(record.average_decay, version))
            held, version = strategy.rule.zero(), version + 1
    if held.totals.count:
        strategy.step(vector, held, moments)
        move_average(average, vector, decay_at(record.average_decay, version))
        version += 1
    examples = {**before.examples, **{update.id.worker: update.examples for update in updates}}
    return Model(vector, average if record.average_decay else vector, moments, version, examples)


def _needs_a_newer_version(record: ModelVersion, before: ModelVersion) -> bool:
    """Tell whether a record without updates is a version of its own: at the end, or to tell of something."""
    has_news = record.rejected > before.rejected or record.survey != before.survey
    return record.is_over or (has_news and record.version > before.version)


def _require_weighed(
    record: ModelVersion, updates: Sequence[WeightUpdate], *, before: int, strategy: Strategy
) -> None:
    """Hold the updates' staleness and weights against the formulas of the papers."""
    setting = str(strategy)
    for place, (one, update) in enumerate(zip(record.folded, updates, strict=True)):
        version = before + place // strategy.buffer_size
        assert one.staleness == version - update.base_version, f"{one}: the model was at version {version}"
        if setting.startswith("fedavg"):
            expected = float(update.examples)
        else:
            expected = _discount(setting.partition("discount=")[2].split(",")[0].rstrip(")"), one.staleness)
        if setting.startswith("fedasync"):
            expected *= float(setting.partition("mixing=")[2].split(",")[0])
        assert math.isclose(one.weight, expected, rel_tol=1e-12), f"{one}: it should weigh {expected}"


def _discount(setting: str, staleness: int) -> float:
    name, *parameters = setting.split(":")
    if name == "polynomial":
        return math.exp(-float(parameters[0]) * math.log1p(staleness))
    if name == "hinge":
        a, b = map(float, parameters)
        return 1.0 if staleness <= b else 1.0 / (a * (staleness - b) + 1.0)
    assert name == "constant"
    return 1.0
