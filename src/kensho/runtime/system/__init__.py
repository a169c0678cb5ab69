"""What the machine is and has: processors, memory, cgroups, child processes."""
