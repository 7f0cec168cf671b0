"""Access to a language model: a server on loopback that speaks the OpenAI-compatible protocol to handlers.

Handlers never see the model's key. Each call takes a permit of the control plane, is sent on to the gateway that the
environment names, is retried where that helps, and is accounted to its agent and research goal.
"""
