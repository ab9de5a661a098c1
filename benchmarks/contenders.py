"""A strategy with its settings as a benchmark is told of it, and shows it: "fedbuff buffer_size=2"."""

from collections.abc import Mapping

from fluffle_aggregator.strategies.registry import STRATEGIES


def read_label(label: str) -> dict[str, str]:
    """Read "fedbuff buffer_size=2 staleness=constant": the strategy's name, and its settings."""
    strategy, *words = label.split() or [""]
    if strategy not in STRATEGIES or not all(word.partition("=")[2] for word in words):
        raise SystemExit(
            f"--strategies must read like 'fedbuff buffer_size=2', with one of {', '.join(STRATEGIES)}, "
            f"not {label!r}"
        )
    return {"strategy": strategy, **dict(word.split("=", 1) for word in words)}


def label_of(settings: Mapping[str, object]) -> str:
    """Return the same text of a strategy's settings, of which the first is its name."""
    (_, strategy), *others = settings.items()
    return " ".join([str(strategy), *(f"{name}={value}" for name, value in others)])


def flags_of(label: str) -> list[str]:
    """Return an aggregator's flags."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in read_label(label).items()]
