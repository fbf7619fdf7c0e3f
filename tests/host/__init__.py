"""Tests of what a process of ours needs from its host."""
