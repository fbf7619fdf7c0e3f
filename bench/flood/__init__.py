"""A relay under attack: calls beside a flood, and what they lose."""
