"""Engines in processes of their own: how they begin, talk, fail and end."""
