"""From files, a hub or inline rows to batches: read, label, check, encode, batch."""
