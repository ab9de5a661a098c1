"""`fluffle data check`: what a site's data is like, and what its data steps would do; nothing is sent."""
