"""Decides if an index may be changed on a file system that cannot swap two files in one step.

There our rename overwrites anything that a gateway writes after our last look. A gateway that takes the store's lock
(up to 2026.4.29) does not write then, nor does a stopped one; but one that runs elsewhere is not visible from here.
So a change is refused if a gateway of the store is visible, and if there are signs that one may run elsewhere.
"""

from __future__ import annotations

import os

from session_manager.core.errors import Refused
from session_manager.files import weaker
from session_manager.files.liveness import now_ms
from session_manager.files.trial import can_exchange, kind_of
from session_manager.stores.openclaw_files.gateways import vouches
from session_manager.stores.openclaw_files.locks import UNSEEN, locks
from session_manager.stores.openclaw_files.store import Snapshot

# File systems that other machines may write, too.
_SHARES = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "afs", "vboxsf", "fuse.sshfs", "fuse.glusterfs",
     "fuse.ceph", "fuse.rclone", "fuse.s3fs", "fuse.grpcfuse", "fuse.osxfs", "fuse.vmhgfs-fuse", "fakeowner")
)  # fmt: skip


def refuse_unguarded(snapshot: Snapshot, *, allowed: bool) -> None:
    """Raises Refused (``no_exchange``) if an edit of the index could overwrite a gateway's writes.

    ``allowed``: the user has made sure that no gateway writes. Raises OSError.
    """
    store = snapshot.store
    folder = os.path.dirname(store.index_path)
    if can_exchange(folder):
        return
    who = None if allowed else writer(snapshot)
    if who is not None:
        raise Refused(
            f"the file system of {folder} cannot swap two files atomically, and {who}: what it writes at that moment "
            f"would be lost; nothing was changed: {weaker.ADVICE}",
            code="no_exchange",
            agentId=store.agent_id,
        )
    weaker.note(weaker.EXCHANGE)


def writer(snapshot: Snapshot) -> str | None:
    """Returns what may write a store now, as part of a sentence; None without a sign of any."""
    store = snapshot.store
    if vouches(store.sessions_dir, store.gateways):
        return "a gateway of this store runs here"
    if (kind := kind_of(store.sessions_dir)) in _SHARES:
        return f"it is a network share ({kind}), and a gateway on another machine may write to it"
    held = next((lock for lock in locks(store, snapshot.names, now_ms()) if lock.state == UNSEEN), None)
    if held is not None:
        return f"{held.name} is held by a process that is not visible from here"
    mount = next((path for session in snapshot.sessions for path in session.session_files if _is_elsewhere(path)), None)
    if mount is not None:
        return f"its gateway has other paths ({mount}), as in another container"
    return None


def _is_elsewhere(session_file: str) -> bool:
    """Returns True if a path belongs to another machine or container."""
    if "\0" in session_file:
        return False
    if "\\" in session_file:
        return True
    return os.path.isabs(session_file) and not os.path.isdir(os.path.dirname(session_file))
