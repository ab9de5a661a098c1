"""Sound messages of each kind: what the fuzzer and hypothesis start from, and change."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from builders import a_masked_answer, a_masked_update, a_site_evaluation, a_version, an_evaluation, an_update
from helping import HELPER, REGISTRY, first_close, following
from sealing import a_refresh, a_sealed_update, a_sealed_version

from fluffle.compression import compress
from fluffle.record import CachedUpdate, Contributor, Folded, Hello, MomentsRecord, Rank
from fluffle.record_wire import encode_copy, encode_version, moments_pieces
from fluffle.secure.closing import Finished, encode_close, encode_finished, encode_not_opened, opening_pieces
from fluffle.secure.helping import Ledger, Refused, encode_ledger, not_opened, openings
from fluffle.sites import SiteReport
from fluffle.survey import statistics_of
from fluffle.survey.messages import SiteStatistics, Survey
from fluffle.survey.result import result_of
from fluffle.update import AppliedUpdates, RunLog, UpdateId
from fluffle.wire import (
    encode_evaluation,
    encode_hello,
    encode_site_evaluation,
    encode_statistics,
    encode_update,
)
from fluffle_helper.comparing import SeenClose, encode_seen

_TABLE: Final = statistics_of(
    np.array([[1.0, -2.5], [4.0, np.nan], [1e9, 7.25]]), np.array([0, 1, 1]), names=["age", "🐇"], classes=2
)
_SITE: Final = a_site_evaluation("w1", 0, tuned=0.75)
SEALED: Final[Sequence[bytes]] = [
    encode_update(a_sealed_update("w1")),
    encode_update(a_refresh(a_sealed_version(5, (3.0,) * 4, weights=64))),
]
INBOUND: Final[Sequence[bytes]] = [
    encode_update(an_update("w1", loss=0.5)),
    encode_update(a_masked_update("w1", revision=2)),
    encode_update(a_masked_answer("w1")),
    *SEALED,
    *(encode_update(an_update("w1", codec=codec)) for codec in ("bfloat16", "int8", "topk", "float32+zstd")),
    encode_evaluation(an_evaluation(0, {"accuracy": 0.5})),
    encode_site_evaluation(_SITE),
    encode_hello(Hello("digits", "w1")),
    encode_statistics(SiteStatistics("digits", "w1", _TABLE)),
]

_RECORD: Final = replace(
    a_version(5),
    applied=AppliedUpdates({("w1", "r1"): RunLog(9, ((2, 3), (7, 7)))}),
    folded=(Folded(UpdateId("w1", "r1", 9), 4, 0, 1.0),),
    contributors={"w1": Contributor(updates=6, examples=60)},
    evaluation=an_evaluation(4, {"accuracy": 0.5}),
    sites={"w1": SiteReport(2, 4, 10, _SITE.metrics, gains_version=4)},
    site_evaluation=an_evaluation(4, {"sites.accuracy": 0.5}),
    survey=Survey(2, ("w1", "w2"), result=result_of(_TABLE, sites=2, min_count=1)),
)
_NUMBERS: Final = np.arange(4, dtype=np.float32)
_KEPT: Final = CachedUpdate("w1", 1.5, 3, "int8", compress("int8", _NUMBERS, np.random.default_rng(1)))
VERSIONS: Final[Sequence[bytes]] = [
    encode_version(_RECORD),
    encode_copy(_RECORD, "int8", "ab" * 32),
    encode_version(a_sealed_version(5, (3.0,) * 4, weights=64)),
]
MOMENTS: Final[Sequence[bytes]] = [
    bytes(moments_pieces(MomentsRecord("digits", Rank(2, 5), {"m": _NUMBERS, "v": _NUMBERS}))),
    bytes(moments_pieces(MomentsRecord("digits", Rank(2, 5), {}, (_KEPT,)))),
]
_CLOSE: Final = first_close()
LEDGER: Final = replace(Ledger(1).checked(_CLOSE, REGISTRY)[0], refused=Refused("too-few-workers", "one"))
SECURE: Final[Sequence[bytes]] = [
    encode_close(_CLOSE),
    encode_close(following(_CLOSE)),
    encode_finished(Finished(because="3 versions")),
    *(bytes(opening_pieces(each)) for each in openings(_CLOSE, HELPER, REGISTRY)),
    encode_not_opened(not_opened(_CLOSE, "helper-1", Refused("wrong-weight", "one"), LEDGER)),
    encode_ledger(LEDGER),
    encode_seen(SeenClose(federation="digits", epoch=1, helper="helper-1", number=1, digest=LEDGER.digest)),
]
SEEDS: Final[Mapping[str, Sequence[bytes]]] = {
    "secure": SECURE,
    "inbound": INBOUND,
    "record": [*VERSIONS, *MOMENTS],
    "leader": INBOUND,
}


def write_seeds(target: str, folder: Path) -> None:
    """Write a target's messages into a folder, as libFuzzer reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, body in enumerate(SEEDS[target]):
        (folder / str(number)).write_bytes(body)
