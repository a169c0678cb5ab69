"""The composition root: class `Kensho` joins delivery, runtime, resilience and telemetry."""
