"""Resilience: when the fast engine fails the safe one answers, and the fast one comes back by itself."""
