"""Entry point of `python -m export`."""

import os
import sys

# torch's compiler writes a class's constants in the order of a set, which changes with each
# process's seed for hashing strings. With one seed, the same model becomes the same bytes.
_SEED = {"PYTHONHASHSEED": "0"}

if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != _SEED["PYTHONHASHSEED"]:
        os.execve(sys.executable, sys.orig_argv, os.environ | _SEED)  # noqa: S606
    from export.cli import main

    sys.exit(main())
