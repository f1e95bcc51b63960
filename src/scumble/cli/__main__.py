"""`python -m scumble.cli`."""

import sys

from scumble.cli.main import main

sys.exit(main())
