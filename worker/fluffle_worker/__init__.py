"""The worker and the evaluator: train or evaluate the newest model where the data lies."""
