"""`python -m glmchat` is the command `glmchat`."""

import sys

from .cli import main

sys.exit(main())
