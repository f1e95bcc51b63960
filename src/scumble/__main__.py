"""`python -m scumble`, and what torchrun starts: `torchrun --nproc-per-node 2 -m scumble train CONFIG`."""

import sys

from scumble.cli.entry import main

sys.exit(main())
