"""How long calls are without media when a relay is lost, or its VIP moves to another one: with Redis and without."""
