"""`python -m service` is `resnet-serve`."""

import sys

from service.cli import main

sys.exit(main())
