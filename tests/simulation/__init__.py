"""A simulation of the engine: real databases, simulated time, network, platform and accidents.

One seed is one story, always the same: ``python -m tests.simulation --seeds 1-2000`` tells them.
"""
