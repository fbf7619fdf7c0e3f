"""The kernel side of the data path: compiled and loaded with BCC, without kernel headers."""
