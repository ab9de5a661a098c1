"""Secure aggregation: masks that only a committee of helpers can take off, and only from a sum.

A worker adds one mask for each group of helpers to its update. The aggregator adds up masked updates, and the
helpers tell it the sum of the masks. Whoever lacks one group's mask learns nothing of a single update.
"""
