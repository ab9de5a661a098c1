"""A helper of secure aggregation: it opens the sum of many updates, and never a single one."""
