"""Every setting of the adapter: name, default, flag and environment variable.

Owns parsing and validation of the command line and of `QWENVL_*`. Must not know what the settings are used for.
"""

from __future__ import annotations

