"""The page that `topi report` writes."""
