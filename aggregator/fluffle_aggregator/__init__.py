"""The aggregator: consumes updates, weighs each by its staleness, and publishes new versions of the model."""
