"""What runs inside a server's worker: decode a request, run the model, encode the answer.

The core (`service` and what it imports) knows nothing of TorchServe; `torchserve` is the
adapter. The package travels inside every archive, so it imports only torch, numpy, the
standard library and `formats`.
"""
