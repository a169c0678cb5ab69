"""Runtime: a model is compiled once on the machine it runs on; later starts map the result."""
