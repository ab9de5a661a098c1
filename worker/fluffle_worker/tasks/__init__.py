"""Ready tasks on real data, each also an example of how to write one."""
