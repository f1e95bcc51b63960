"""`python -m scumble.cli`."""

import sys

from scumble.cli.entry import main

sys.exit(main())
