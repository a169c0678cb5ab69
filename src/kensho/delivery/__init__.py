"""Delivery: the bytes on disk are the publisher's, or they are repaired, or they are not used."""
