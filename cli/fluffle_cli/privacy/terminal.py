"""The numbers of differential privacy as rows of tables, and as plain types."""

from collections.abc import Mapping, Sequence
from typing import Final

from rich.filesize import decimal

from fluffle.privacy.promise import NoiseKind
from fluffle_cli.privacy.planning import Numbers, PrivacyNumbers
from fluffle_cli.words import count

NOISE_TO_UPDATES: Final = "noise to updates"
MULTIPLIER: Final = "noise multiplier"
EXPLAINED: Final = (
    "Noise to updates is the length of the noise in the last model, divided by that of all updates together "
    "if all were as long as the clip and had one direction. Real updates add up to less: above 1 little is "
    "learnt, and much well below."
)
# Of secure aggregation: of fewer no sum is opened.
FEWEST_WORKERS: Final = 2
TOO_FEW: Final = "too few workers"


def course(found: PrivacyNumbers) -> str:
    """Say in a sentence how the federation goes on."""
    asked = found.asked
    apart = f", at least {asked.separation:,} versions apart" if asked.separation > 1 else ""
    return (
        f"{count(asked.workers, 'worker')} make {count(asked.versions, 'version')} of "
        f"{count(asked.buffer_size, 'update')}: each worker sends at most {count(asked.updates, 'update')}"
        f"{apart}."
    )


def compared_rows(found: PrivacyNumbers) -> tuple[Sequence[str], list[list[str]]]:
    """Return the heads and rows of the table that compares the kinds of noise."""
    kinds = found.asked.kinds
    each = [found.by_kind[kind] for kind in kinds]
    noised = "each update" if found.asked.mechanism == "local" else "a sum"
    rows = [
        [MULTIPLIER, *(short(one.multiplier) for one in each)],
        [f"standard deviation of the noise in {noised}", *(short(one.run.std) for one in each)],
        [NOISE_TO_UPDATES, *(short(one.run.noise_to_updates) for one in each)],
        ["smallest useful buffer", *(_buffer(one) for one in each)],
    ]
    if found.chosen.bits:
        rows.append(["bits of an update's numbers", *(str(one.bits) for one in each)])
    if found.asked.correlated:
        rows += [
            ["bands", *(str(one.run.bands) for one in each)],
            ["memory of the noise at the aggregator", *(decimal(one.memory_bytes) for one in each)],
        ]
    return ("", *map(head, kinds)), rows


def epsilon_rows(found: PrivacyNumbers) -> tuple[Sequence[str], list[list[str]]]:
    """Return the heads and rows of the table of epsilons."""
    kinds, knows_guesses = found.asked.kinds, found.chosen.right_in_100 is not None
    columns = [f"{what}{suffix}" for what in (MULTIPLIER, NOISE_TO_UPDATES) for suffix in _suffixes(kinds)]
    rows = []
    for row in found.by_epsilon():
        each = [row[kind] for kind in kinds]
        numbers = [short(one.multiplier) for one in each] + [short(one.run.noise_to_updates) for one in each]
        guesses = [str(each[0].right_in_100)] if knows_guesses else []
        rows.append([f"{each[0].epsilon:.3g}", *guesses, *numbers])
    return ("epsilon", *(["right guesses in 100"] if knows_guesses else []), *columns), rows


def buffer_rows(found: PrivacyNumbers) -> tuple[Sequence[str], list[list[str]]]:
    """Return the heads and rows of the table of buffer sizes."""
    kinds = found.asked.kinds
    rows = []
    for row in found.by_buffer_size():
        run = row["plain"].run
        needed = run.separation * run.buffer_size
        rows.append(
            [
                f"{run.buffer_size:,}",
                f"{run.steps:,}",
                *(short(row[kind].run.noise_to_updates) for kind in kinds),
                f"{needed:,}{f' ({TOO_FEW})' if needed > run.workers else ''}",
            ]
        )
    columns = [f"{NOISE_TO_UPDATES}{suffix}" for suffix in _suffixes(kinds)]
    return ("buffer size", "versions", *columns, "workers needed"), rows


def aggregator_command(found: PrivacyNumbers) -> str:
    """Return how to start an aggregator that adds this noise; empty if it does not add such noise."""
    asked = found.asked
    if asked.mechanism == "distributed":
        return _command_of_shares(found)
    is_central = asked.mechanism == "central"
    kind = " --dp-noise plain" if is_central and not asked.correlated else ""
    numbers = {
        "--buffer-size": asked.buffer_size,
        "--dp-epsilon": found.epsilon,
        "--dp-delta": asked.delta,
        "--dp-clip": asked.clip,
        "--dp-max-updates": asked.updates,
        **({"--dp-separation": asked.separation} if is_central else {}),
    }
    flags = " ".join(f"{flag} {_exact(number)}" for flag, number in numbers.items())
    secret = " --dp-secret FILE" if is_central else ""
    return f"fluffle aggregator --dp {asked.mechanism}{kind} {flags}{secret}"


def _command_of_shares(found: PrivacyNumbers) -> str:
    asked = found.asked
    if asked.honest < FEWEST_WORKERS:
        return ""
    numbers = {
        "--secure-min-workers": asked.honest,
        "--buffer-size": asked.buffer_size,
        "--dp-epsilon": found.epsilon,
        "--dp-delta": asked.delta,
        "--dp-clip": asked.clip,
        "--dp-max-updates": asked.updates,
    }
    flags = " ".join(f"{flag} {_exact(number)}" for flag, number in numbers.items())
    return (
        f"fluffle aggregator --dp distributed {flags} --secure-registry FILE --secure-operator FILE "
        "--secure-aggregation"
    )


def as_plain(found: PrivacyNumbers) -> dict[str, object]:
    """Return the numbers in plain types, for JSON."""
    asked = found.asked
    is_distributed = asked.mechanism == "distributed"
    return {
        "promise": found.promise,
        "mechanism": asked.mechanism,
        "noise": found.asked.kinds[0],
        "epsilon": found.epsilon,
        "delta": asked.delta,
        "clip": asked.clip,
        "workers": asked.workers,
        "buffer_size": asked.buffer_size,
        "parameters": asked.parameters,
        "max_updates": asked.updates,
        "separation": asked.separation,
        **({"honest": asked.honest, "bits": found.chosen.bits} if is_distributed else {}),
        "versions": asked.versions,
        "aggregator_command": aggregator_command(found),
        "warnings": list(found.warnings),
        "by_noise": _plain(found.by_kind),
        "by_epsilon": [
            {"epsilon": row["plain"].epsilon, "by_noise": _plain(row)} for row in found.by_epsilon()
        ],
        "by_buffer_size": [
            {
                "buffer_size": row["plain"].run.buffer_size,
                "versions": row["plain"].run.steps,
                "by_noise": _plain(row),
            }
            for row in found.by_buffer_size()
        ],
    }


def short(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:#.3g}".removesuffix(".")


def head(kind: NoiseKind) -> str:
    """Return the name of a kind of noise."""
    return f"{kind} noise"


def _exact(number: float) -> str:
    rounded = f"{number:g}"
    return rounded if float(rounded) == number else repr(number)


def _plain(by_kind: Mapping[NoiseKind, Numbers]) -> dict[str, object]:
    return {
        kind: {
            "noise_multiplier": one.multiplier,
            "std": one.run.std,
            "bands": one.run.bands,
            "memory_bytes": one.memory_bytes,
            "right_guesses_in_100": one.right_in_100,
            "noise_to_updates": one.run.noise_to_updates,
            "useful_buffer_size": one.useful_buffer,
        }
        for kind, one in by_kind.items()
    }


def _suffixes(kinds: Sequence[NoiseKind]) -> list[str]:
    return [f", {kind}" for kind in kinds] if len(kinds) > 1 else [""]


def _buffer(one: Numbers) -> str:
    useful = one.useful_buffer
    return "none" if useful is None else f"{useful:,}"
