"""`python -m finetune.cli`: the command line without its entry point."""

import sys

from finetune.cli import main

sys.exit(main())
