"""One module per page of the reference; each has ``lines()``."""
