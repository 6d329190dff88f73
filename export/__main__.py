"""Entry point of `python -m export`."""

import os
import sys

# torch's compiler writes a class's constants in the order of a set, which changes with each
# process's seed for hashing strings. With one seed, the same model becomes the same bytes.
_FIXED = {"PYTHONHASHSEED": "0"}
# One thread, as a worker has: several become many times slower as soon as another process wants
# a core, and sum in another order. Whoever exports a large model on an idle machine sets more.
_DEFAULT = {"OMP_NUM_THREADS": "1"}

if __name__ == "__main__":
    wanted = _DEFAULT | os.environ | _FIXED
    if wanted != dict(os.environ):
        os.execve(sys.executable, sys.orig_argv, wanted)  # noqa: S606
    from export.cli import main

    sys.exit(main())
