"""Hypothesis for these tests: no deadline, since a busy CI machine is not a slow relay."""

from hypothesis import settings

settings.register_profile("relayctl", deadline=None)
settings.load_profile("relayctl")
