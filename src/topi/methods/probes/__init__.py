"""What watches a model and changes nothing."""
