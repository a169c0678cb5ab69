"""A compiled graph is made, tried and chosen, in a child process."""
