"""The relays that are measured, one module each, behind ``bench.peers.base``."""
