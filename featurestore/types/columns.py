"""The columns of every offline table beside join keys and features."""

EVENT, CREATED, SEQUENCE, ORIGIN = "event_ts", "created_ts", "fs_seq", "fs_origin"
LOG_COLUMNS = (EVENT, CREATED, SEQUENCE, ORIGIN)
