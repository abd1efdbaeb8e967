"""The test bench above the library: sweeps, stores, reports."""
