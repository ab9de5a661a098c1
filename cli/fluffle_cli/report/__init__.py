"""`fluffle report`: what came out of a run, as one page."""
