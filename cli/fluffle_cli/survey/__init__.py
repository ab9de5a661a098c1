"""`fluffle survey`: the statistics of all sites' data, as a table, as JSON and as a page with pictures."""
