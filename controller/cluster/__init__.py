"""A cluster: resources on an API server, kept by an operator on each node."""
