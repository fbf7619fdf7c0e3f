"""The C side of the data path: headers and programs, packaged beside the Python that loads them."""
