"""One version as everybody who watches knows it: its record without the model, in plain types. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Self

from fluffle.plan import Plan
from fluffle.record import Contributor, Evaluation, Folded, ModelVersion, Rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version's record without the model; one line of `metrics.jsonl`.

    The fields are those of ModelVersion, but for `parameters`, the number of the model's trained parameters.
    """

    federation: str
    version: int
    term: int
    terms: Sequence[Rank] = ()
    committed_at: float = 0.0
    strategy: str = ""
    plan: Plan = field(default_factory=Plan)
    parameters: int = 0
    updates: int = 0
    rejected: int = 0
    evaluation: Evaluation | None = None
    best: Evaluation | None = None
    best_by: str = ""
    target_held: int = 0
    elapsed_s: float = 0.0
    training_s: float = 0.0
    closing: str = ""
    finished: str = ""
    folded: Sequence[Folded] = ()
    contributors: Mapping[str, Contributor] = field(default_factory=dict)

    @classmethod
    def of(cls, record: ModelVersion) -> Self:
        """Take from a record what is worth knowing without the model."""
        names = [each.name for each in fields(cls) if each.name != "parameters"]
        return cls(parameters=record.layout.size, **{name: getattr(record, name) for name in names})

    @property
    def rank(self) -> Rank:
        """The order of this version among all."""
        return Rank(self.term, self.version)
