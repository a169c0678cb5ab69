"""Compiled graphs on disk: header, look-up, damage, statistics, pruning."""
