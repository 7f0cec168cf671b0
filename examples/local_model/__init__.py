"""A small language model on this machine, without an account or a network: SmolLM2 with 135 million parameters.

It writes fluently and keeps to a JSON schema; it cannot judge which of two things is better. What it writes has to be
judged by something else.
"""
