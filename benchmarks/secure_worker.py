"""What secure aggregation costs a worker: CPU milliseconds for a million parameters, on one core.

    python -m benchmarks.secure_worker

`rounding` makes whole numbers of a delta, nearly all of it numpy's random numbers; `clipping` looks whether
the clip suits; `masking` adds the masks of three groups and packs; `encode` makes the message. `plain` is the
message in float32, which a worker makes without secure aggregation. `extra` is all of it less `plain`, and
`without_rounding` that less `rounding`. To reach: 60 and 10.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.measuring import Cell, Report, Spread, in_turns, random_floats, wide_console
from fluffle.codecs.floats import Float32Vector
from fluffle.model import Layout, no_values
from fluffle.secure.committee import Committee
from fluffle.secure.key_files import WorkerKey, new_helper_keys, public_part
from fluffle.secure.masking import Masks, whole_numbers
from fluffle.secure.modulus import BITS
from fluffle.secure.plan import SecurePlan
from fluffle.secure.registry import Registry
from fluffle.update import UpdateId, WeightUpdate
from fluffle.wire import encode_update
from fluffle_worker.clipping import ClippingWarnings
from fluffle_worker.round import TrainedUpdate

PARAMETERS = 1_000_000
REPEATS = 9


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="secure_worker", description="Measure a worker's masking.")
    parser.add_argument("--parameters", type=int, default=PARAMETERS)
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"default: {REPEATS}")
    arguments = parser.parse_args()
    report = Report("secure-worker", "secure_worker: CPU milliseconds for a million parameters")
    for bits in BITS:
        with report.row() as row:
            row.update({"modulus_bits": bits, **measured(bits, arguments.parameters, arguments.repeats)})
    report.show(wide_console())


def measured(modulus_bits: int, parameters: int, repeats: int) -> Mapping[str, Cell | Spread]:
    """Return what each step takes, and the bytes of a message beyond those of its numbers."""
    plan = SecurePlan(epoch=1, clip=0.1, bits=8 if modulus_bits == BITS[0] else 16, modulus_bits=modulus_bits)
    update, masks = an_update(parameters), masks_of_worker()
    delta, random = random_floats(parameters, 1), np.random.default_rng(0)
    layout = Layout.of({"kernel": delta})
    numbers = whole_numbers(delta, no_values(), plan, random)
    masked = masks.masked(update, numbers, plan)
    trained = TrainedUpdate(update, delta, {}, {}, "")
    actions: Mapping[str, Callable[[], object]] = {
        "rounding": lambda: whole_numbers(delta, no_values(), plan, random),
        "clipping": partial(ClippingWarnings().note, trained, layout, plan),
        "masking": partial(masks.masked, update, numbers, plan),
        "encode": partial(encode_update, masked),
        "plain": partial(encode_update, update),
    }
    spreads = in_turns({name: cpu_time(action) for name, action in actions.items()}, repeats)
    found = {name: spread.times(1e9 / parameters) for name, spread in spreads.items()}
    without = {name: found[name].median for name in ("clipping", "masking", "encode")}
    cheap = sum(without.values()) - found["plain"].median
    return {
        **found,
        "extra": round(cheap + found["rounding"].median, 2),
        "without_rounding": round(cheap, 2),
        "header_bytes": len(encode_update(masked)) - plan.modulus.bytes_of(parameters),
    }


def cpu_time(action: Callable[[], object]) -> Callable[[], float]:
    """Return a measurement of the CPU seconds that an action takes."""

    def measure() -> float:
        with threadpool_limits(1):
            began = time.process_time()
            action()
            return time.process_time() - began

    return measure


def an_update(parameters: int) -> WeightUpdate:
    """Return an update of so many random float32."""
    return WeightUpdate(
        federation="digits",
        id=UpdateId("hospital-1", "0123456789abcdef", 7),
        base_term=1,
        base_version=31,
        layout_digest="0" * 16,
        sends="delta",
        codec="float32",
        vector=Float32Vector.of(random_floats(parameters, 1)),
        examples=1000,
    )


def masks_of_worker() -> Masks:
    """Return the masks of a worker with three helpers, of which one may collude."""
    committee, key = Committee(("helper-1", "helper-2", "helper-3"), 1), WorkerKey.new("digits", "hospital-1")
    public, _ = new_helper_keys("digits", 1, committee)
    registry = Registry(
        federation="digits",
        epoch=1,
        helpers=public.helpers,
        colluding=public.colluding,
        group_keys=public.group_keys,
        workers={key.name: public_part(key.private)},
    )
    return Masks(registry, key.private)


if __name__ == "__main__":
    main()
