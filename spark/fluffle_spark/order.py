"""What a Spark task tells the worker process that it starts, and what it hears from it. Pure.

An order goes to the process's standard input as one line of JSON, which neither the command line nor the
environment shows: it may hold a password. The site's rows follow as an Arrow stream. After them the pipe
stays open, and when it is closed the worker ends, because then its Spark task is gone. On its standard
output the process reports, one line of JSON for each report.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one site shall do: the name of its worker, the task, the columns, and the worker's settings.

    `features` are the columns of the inputs, in this order, and `label` the column of the targets.
    `data_table` is a TOML text with the table [data] alone, and `code` the task's module; both are empty for
    none. After `rounds_per_turn` confirmed updates the worker ends; with 0 it works until the federation has
    finished.
    """

    site: str
    task: str
    features: tuple[str, ...]
    label: str
    settings: Mapping[str, Any] = field(repr=False)
    data_table: str = ""
    code: bytes = field(default=b"", repr=False)
    rounds_per_turn: int = 0

    def encode(self) -> bytes:
        """Return the order as one line."""
        code = base64.b64encode(self.code).decode()
        return json.dumps({**asdict(self), "code": code}).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "Order":
        """Read what `encode` returned."""
        found = json.loads(line)
        code = base64.b64decode(found["code"])
        return cls(**{**found, "features": tuple(found["features"]), "code": code})


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """What the worker of a site has done so far, or did; the columns of the data frame of `federate`.

    `rows` are its training examples, `rounds` those that it trained, `updates` those that RabbitMQ confirmed,
    and `refused` the updates that the aggregator refused. `ended` says why the federation finished, or why
    this worker left; it is empty while it works. `error` is a sentence where it could not go on, and
    `metrics` are the last ones that it measured. `ran_on` names the executor and its host.
    """

    site: str
    rows: int = 0
    rounds: int = 0
    updates: int = 0
    refused: int = 0
    ended: str = ""
    error: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    ran_on: str = ""

    def encode(self) -> bytes:
        """Return the report as one line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "SiteReport":
        """Read what `encode` returned."""
        return cls(**json.loads(line))

    def then(self, later: "SiteReport") -> "SiteReport":
        """Return what both turns of a site did together: counts add up, the rest is the later one's."""
        return SiteReport(
            **{
                **asdict(later),
                "rounds": self.rounds + later.rounds,
                "updates": self.updates + later.updates,
                "metrics": later.metrics or self.metrics,
            }
        )
