"""A helper of secure aggregation: it opens the sums of buffers, and never sees an update."""
