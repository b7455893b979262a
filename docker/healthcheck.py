"""Exit 0 if the server in this container wants traffic: what Docker's HEALTHCHECK runs."""

import os
import ssl
import sys
import urllib.error
import urllib.request

scheme = "https" if os.environ.get("SERVICE_TLS_CERT") else "http"
# The certificate is for the name that callers use, not for this address.
context = ssl._create_unverified_context() if scheme == "https" else None  # noqa: S323
url = f"{scheme}://127.0.0.1:{os.environ.get('SERVICE_PORT', '8000')}/health/ready"
try:
    urllib.request.urlopen(url, timeout=2, context=context)  # noqa: S310
except (OSError, urllib.error.URLError) as error:
    sys.exit(str(error))
