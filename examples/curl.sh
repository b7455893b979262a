#!/bin/sh
# Classify an image with curl: examples/curl.sh IMAGE [URL]
# --retry repeats after 429 and 503, for as long as Retry-After says.
set -eu
exec curl --silent --show-error --fail-with-body --retry 5 --form "file=@$1" "${2:-http://127.0.0.1:8000}/classify"
