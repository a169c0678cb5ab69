"""What every slice shares and that touches nothing: errors, ids, events, clock protocol, back-off, LRU."""
