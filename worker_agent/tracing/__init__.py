"""Traces of tasks, the same for every program: W3C trace context, spans, and the way to an OpenTelemetry collector."""
