"""What a method has to beat: the full run, chance, fewer steps, smaller references."""
