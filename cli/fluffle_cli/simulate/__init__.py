"""`fluffle simulate`: a federation on a virtual clock, with the deployed leader and real training."""
