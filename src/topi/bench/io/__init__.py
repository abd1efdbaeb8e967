"""What leaves and enters a process: escaped text, file names, streams, signals."""
