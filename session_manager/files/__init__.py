"""Files, locks and processes of this machine; knows no store and no ledger."""
