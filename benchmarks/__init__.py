"""One module a claim: each prints its figures, the verdict last, and exits non-zero when it falls short."""

import os

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
