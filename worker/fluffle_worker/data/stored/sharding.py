"""Which parts of a data set a site reads, so that each row belongs to exactly one site. Pure."""

from collections.abc import Sequence

# No site may have more than this many times the mean, or else rows are divided and not files.
BALANCED = 1.1


def whole_units(sizes: Sequence[int], *, index: int, count: int) -> list[int] | None:
    """Return which units, files or parts of files, belong to site `index` of `count`, in their order.

    The largest go first, each to the site that has least so far. None when there are fewer units than sites,
    or when they differ so much that some site would have far more than others.
    """
    if len(sizes) < count:
        return None
    loads, owner = [0] * count, [0] * len(sizes)
    for unit in sorted(range(len(sizes)), key=lambda unit: (-sizes[unit], unit)):
        # A unit of size 0 must not all go to the same site.
        least = min(range(count), key=lambda site: (loads[site], site))
        owner[unit] = least
        loads[least] += sizes[unit]
    if max(loads) * count > BALANCED * sum(loads):
        return None
    return [unit for unit, site in enumerate(owner) if site == index]


def row_ranges(sizes: Sequence[int], *, index: int, count: int) -> list[tuple[int, int, int]]:
    """Return (unit, begin, end) of the rows of site `index`: the rows of all units, cut into equal ranges."""
    total = sum(sizes)
    first, last = total * index // count, total * (index + 1) // count
    found, at = [], 0
    for unit, size in enumerate(sizes):
        begin, end = max(first - at, 0), min(last - at, size)
        if begin < end:
            found.append((unit, begin, end))
        at += size
    return found
