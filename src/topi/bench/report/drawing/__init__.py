"""What figures are drawn with: plots and sheets of pictures."""
