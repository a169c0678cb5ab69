"""Rehearse failures: virtual time, a simulated repository, a faulty disk, a scripted engine. Shipped for users too."""
