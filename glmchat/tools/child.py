"""What a `python` tool runs as: `child.py MODULE:FUNCTION FOLDER`, arguments as JSON on stdin.

The result goes to stdout, and what the function prints to stderr, so that the result stands alone. It is run
by its path in a process of its own, and imports nothing but the standard library and the tool.
"""

import importlib
import json
import sys


def main(spec: str, folder: str) -> None:
    arguments = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr
    sys.path[0] = folder  # in place of this file's own
    module, _, name = spec.partition(":")
    result = getattr(importlib.import_module(module), name)(**arguments)
    out.write(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
