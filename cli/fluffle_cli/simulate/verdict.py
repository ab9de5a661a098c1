"""What a sweep recommends, in sentences."""

import math
from collections.abc import Sequence

from fluffle_cli.simulate.recommend import CONFIDENCE, Margin, margin
from fluffle_cli.simulate.results import SweepResults
from fluffle_cli.words import count, in_a_row


def verdict(found: SweepResults) -> list[str]:
    """Name the best combination, its margin to the next one, and those that it cannot be told from."""
    order, labels = found.order, [each.label for each in found.grid.combinations]
    if not order:
        return ["Nothing can be recommended: no run has come to its end."]
    best = order[0]
    times = list(found.times(best).values())
    spread = found.spread(best, "target_s")
    if spread is None or math.isinf(spread.median):
        return [
            f"Nothing can be recommended: no combination holds {found.target} within {found.max_seconds:g} s "
            "for more than half of its seeds."
        ]
    said = spread.in_words(lambda value: f"{value:.1f} s")
    sentences = [
        f"The best is {labels[best]}: {found.target} held from {said}, the median over "
        f"{count(len(times), 'seed')}."
    ]
    if failed := [str(each.seed) for each in found.failures if each.place == best]:
        sentences.append(
            f"Its runs with the seeds {in_a_row(failed)} have failed, and are not in the median."
        )
    if len(order) == 1:
        return sentences
    margins = {place: _margin(found, place, best, len(order) - 1) for place in order[1:]}
    if (first := margins[order[1]]) is None:
        return [*sentences, "No other combination has a run with the same seed: nothing can be compared."]
    # What never held takes longer than it was watched.
    is_bound = any(map(math.isinf, found.times(order[1]).values())) and not any(map(math.isinf, times))
    sentences.append(_next(labels[order[1]], first, "at least " if is_bound else ""))
    alike = [labels[place] for place in order[2:] if (one := margins[place]) and not one.is_told]
    if alike:
        sentences.append(f"Nor can it be told from {in_a_row(alike)}.")
    if not first.is_told or alike:
        open_ends = [each for each in margins.values() if each and not each.is_told]
        sentences.append(_more_seeds(open_ends))
    fresh, seeds = found.grid.seeds[-1] + 1, len(found.grid.seeds)
    sentences.append(
        f"It was chosen by these seeds, which flatters it: --seed {fresh} --seeds {seeds} plays other ones."
    )
    return sentences


def _margin(found: SweepResults, slower: int, faster: int, comparisons: int) -> Margin | None:
    times = found.times(slower), found.times(faster)
    return margin(*times, limit_s=found.limit_s, comparisons=comparisons)


def _next(label: str, one: Margin, bound: str) -> str:
    interval = f"{CONFIDENCE:.0%} interval {_times(one.low)} to {_times(one.high)}"
    said = f"{bound}{one.ratio:.2f} times as long ({interval}, {count(one.pairs, 'paired seed')})"
    if one.is_told:
        return f"The next is {label}, which takes {said}."
    return f"It cannot be told from the next, {label}, which takes {said}."


def _times(value: float) -> str:
    return "any number of times" if math.isinf(value) else f"{value:.2f}"


def _more_seeds(margins: Sequence[Margin]) -> str:
    needed = [each.more_seeds for each in margins]
    known = [each for each in needed if each is not None]
    if not known:
        return "The margin is too small, or the seeds are too few, to say how many more would tell."
    return f"About {count(max(known), 'more seed')} might tell, if the times go on to vary as they do."
