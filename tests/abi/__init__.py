"""Tests that C and Python agree."""
