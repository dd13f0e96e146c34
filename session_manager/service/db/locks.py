"""Keys of the advisory locks, all of them held for one transaction only.

WRITERS is taken by whatever inserts sessions or marks many of them: rows become visible in the order of their
``seq``, which keeps pages stable, and two writers of many rows cannot wait for each other in a circle.
"""

from typing import Final

MIGRATIONS: Final = 0x5E55_0001
SYNC: Final = 0x5E55_0002
WRITERS: Final = 0x5E55_0003
