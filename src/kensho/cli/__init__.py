"""The command line: a contract for people and for programs."""
