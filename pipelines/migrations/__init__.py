"""Schema history of the store: one revision a file in `versions`, run by `Store.open`."""
