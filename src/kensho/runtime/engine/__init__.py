"""One model in memory that makes tokens; no process, no socket."""
