"""What decides: resources, plans, stores, sources and the ways in."""
