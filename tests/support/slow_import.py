"""A module that takes two seconds to import, as torch does on a busy machine."""

import time

time.sleep(2.0)
