"""The `topi` command."""
