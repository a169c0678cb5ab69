"""Server: the daemon, its socket for thin clients and its HTTP interface; and the static origin for trials."""
