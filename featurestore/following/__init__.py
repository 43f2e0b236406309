"""The online part of views with aggregations: it follows the log, in the order in which its events were committed."""
