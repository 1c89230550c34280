import sys

from roost.server.program import main

sys.exit(main())
