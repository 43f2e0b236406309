"""The columns of every offline table besides join keys and features."""

from featurestore.types.values import Int64, String, Timestamp

EVENT, CREATED, SEQUENCE, ORIGIN = "event_ts", "created_ts", "fs_seq", "fs_origin"
LOG_COLUMNS = {EVENT: Timestamp, CREATED: Timestamp, SEQUENCE: Int64, ORIGIN: String}
"""In the order of the tables, between join keys and stored fields."""

FILE_NUMBER, FILE_ROW = "file_index", "file_row_number"
"""Names that the engine uses for a row's place in a Parquet file; a file's column of that name would hide them."""
