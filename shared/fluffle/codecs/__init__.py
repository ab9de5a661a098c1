"""How a float32 vector becomes bytes, codec by codec; fluffle.compression knows them by name."""
