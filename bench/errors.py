"""What can go wrong in a measurement."""


class BenchError(Exception):
    """The measurement did not take place."""


class PeerUnavailableError(BenchError):
    """This peer cannot run on this machine; the text says why and goes into the table."""
