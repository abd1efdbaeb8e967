"""Methods of this repository that go beyond the paper."""
