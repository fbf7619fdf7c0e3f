"""What the members of a fleet know of each other's work, so that one can go on for another."""
