"""One transceiver process under calls, beside stock aiortc: calls a core, setup, memory."""
