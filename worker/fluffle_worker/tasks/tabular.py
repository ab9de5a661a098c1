"""Tables: a small network for the columns and classes of whatever table `--data` and `--label` name."""

from fluffle_worker.tabular.task import TabularTask

task = TabularTask()
