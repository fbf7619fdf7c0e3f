"""The relay's decisions, pure: bytes, addresses and ``now`` go in, outcomes and events come out."""
