"""What Redis holds: transceiver leases and the flow cache. Nothing yet: one host needs none."""
