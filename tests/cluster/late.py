"""A module that takes its time to be imported, as torch does on a machine that is busy."""

import time

time.sleep(2.0)
