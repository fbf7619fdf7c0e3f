"""How packets enter and leave: data paths that feed the core and do what it decides."""
