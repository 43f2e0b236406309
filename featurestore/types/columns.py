"""The columns of every offline table beside join keys and features."""

EVENT, CREATED, SEQUENCE, ORIGIN = "event_ts", "created_ts", "fs_seq", "fs_origin"
LOG_COLUMNS = (EVENT, CREATED, SEQUENCE, ORIGIN)

FILE_NUMBER, FILE_ROW = "file_index", "file_row_number"
"""By these names the engine tells where a row of a Parquet file lies; a column of a file would take their place."""
