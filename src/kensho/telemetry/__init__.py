"""Telemetry: one structured event feeds logs, metrics and live status."""
