__version__ = "0.1.0"

import os as _os
_os.environ.setdefault('OMP_WAIT_POLICY', 'passive')   # threads that wait for each other sleep: beside another busy process they would spin, and take ten times as long
