"""Convener: the deployment control plane of an AI co-scientist."""
