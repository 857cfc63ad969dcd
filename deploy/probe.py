"""Whether a server of this container answers well: exit code 0, else 1 with the reason.

It needs nothing but Python, so that a probe every few seconds costs little. A certificate is not checked:
it names the host that clients use, and the probe asks loopback.
"""

from __future__ import annotations

import ssl
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 4


def main(url: str) -> int:
    """Ask the URL; where a server speaks only TLS, it is asked by TLS."""
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    why = ""
    for candidate in (url, url.replace("http://", "https://", 1)):
        try:
            with urllib.request.urlopen(candidate, timeout=TIMEOUT_S, context=unchecked):  # noqa: S310 - http
                return 0
        except urllib.error.HTTPError as error:
            print(f"{candidate} answered {error.code}")
            return 1
        except (OSError, ValueError) as error:  # not there, or not HTTP
            why = f"{candidate}: {error}"
    print(why)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
