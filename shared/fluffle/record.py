"""The record of a model version: the model, and all that a successor of the aggregator needs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fluffle.model import Layout, Vector
from fluffle.plan import Plan
from fluffle.update import Applied, UpdateId


@dataclass(frozen=True, slots=True)
class Folded:
    """One update that a version contains, with the staleness and the weight that it was given."""

    id: UpdateId
    base_version: int
    staleness: int
    weight: float


@dataclass(frozen=True, slots=True)
class Contributor:
    """What one worker has given to the federation so far.

    `last_update_at` is Unix time in seconds by the aggregator's clock: for people, never for decisions.
    """

    updates: int = 0
    examples: int = 0
    staleness_sum: int = 0
    weight_sum: float = 0.0
    rejected: int = 0
    last_update_at: float = 0.0

    @property
    def mean_staleness(self) -> float:
        """The mean over this worker's applied updates, in versions."""
        return self.staleness_sum / self.updates if self.updates else 0.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluator measured of one version on held-out data."""

    federation: str
    evaluator: str
    version: int
    metrics: Mapping[str, float]
    evaluate_s: float = 0.0


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """The order of versions: a higher term wins, whatever the version number."""

    term: int
    version: int

    def __str__(self) -> str:
        return f"{self.version} (term {self.term})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One version of the global model.

    `version` counts the steps of the global model since the first (version 0); records of some versions
    may never be published. `parent` is the digest of the record published before, empty for the first.
    `folded` are the updates applied since then. `moments_checksum` names the server optimizer's moments that
    lie beside this record in the head queue, None when it has none. `elapsed_s` counts the seconds in which
    the federation had a leader. `finished` says why the federation ended, and is empty until then.
    """

    federation: str
    term: int
    version: int
    parent: str
    layout: Layout
    plan: Plan
    strategy: str
    vector: Vector
    integers: bytes
    applied: Applied = field(default_factory=Applied)
    folded: tuple[Folded, ...] = ()
    contributors: Mapping[str, Contributor] = field(default_factory=dict)
    rejected: int = 0
    evaluation: Evaluation | None = None
    best: Evaluation | None = None
    target_held: int = 0
    elapsed_s: float = 0.0
    committed_at: float = 0.0
    finished: str = ""
    moments_checksum: int | None = None

    @property
    def rank(self) -> Rank:
        """The order of this version among all."""
        return Rank(self.term, self.version)

    @property
    def updates(self) -> int:
        """The number of updates that this version contains, from the first version on."""
        return sum(contributor.updates for contributor in self.contributors.values())


@dataclass(frozen=True, slots=True)
class Moments:
    """The server optimizer's memory at one version: float32 vectors of the model's size by name."""

    federation: str
    rank: Rank
    vectors: Mapping[str, Vector]


@dataclass(frozen=True, slots=True)
class Hello:
    """What an aggregator sends to itself through the updates queue: whoever receives it first leads."""

    federation: str
    aggregator: str
