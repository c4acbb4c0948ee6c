"""The real daemon as a process, its disk, network, clock and platform at their worst."""
